// Names and focus that the theme leaves out, for screen readers and the keyboard.
document.querySelector("[data-md-component=search]")?.setAttribute("aria-label", "Search");
const WIDE = ".md-typeset__scrollwrap, .md-typeset pre > code, .highlight-ipynb, .jp-OutputArea-output";
function letKeyboardScroll() {
  for (const element of document.querySelectorAll(WIDE)) {
    if (element.scrollWidth > element.clientWidth) element.tabIndex = 0;
  }
}
addEventListener("resize", letKeyboardScroll);
addEventListener("load", () => setTimeout(letKeyboardScroll, 200));  // the theme wraps tables first
