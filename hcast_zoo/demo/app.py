"""A page to try a model: a Gradio app over the functions of :mod:`hcast_zoo.demo.view`, local or on a Space."""

import contextlib
import functools
import os
import re
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import gradio as gr
from PIL import Image
from starlette.middleware import Middleware
from starlette.middleware.body_limit import RequestBodyLimitMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from ..adaptation.config import AdaptConfig
from ..common.choices import DECODERS
from ..inference.predictor import Predictor
from ..network.config import NUM_STAGES
from .guard import REFUSED, Guard, check_upload, explain_errors, refuse_other_files
from .view import (
    adapt_to,
    answer_html,
    caption_html,
    error_text,
    heading_html,
    look_at,
    message_html,
    model_name,
    offered_examples,
    subtrees,
)

LOOPBACK = "127.0.0.1"
MAX_UPLOAD = 20 * 2**20  # bytes of one picture
KEEP = 3600  # seconds that pictures are kept
MAX_SESSIONS = 50  # beyond this, the segments of the oldest session are dropped
DECODINGS = {
    "best_path": "the most probable path",
    "top_down": "from the top down",
    "independent": "each level by itself, as in the paper",
}
# The limits bound memory. Adaptations have their own queue, so that a picture never waits for one.
LOOKS = {"concurrency_id": "looks", "concurrency_limit": 4}
ADAPTATIONS = {"concurrency_id": "adaptations", "concurrency_limit": 2}
# A click on a node of the tree sends that node's name.
CLICK = """element.addEventListener('click', event => {
    const button = event.target.closest('button[data-node]');
    if (button) trigger('click', {node: button.dataset.node});
});"""
# Gradio gives buttons that show a picture no name, which a screen reader needs; the upload button one that is not its
# text; and an empty picture a name without a role.
NAME_PARTS = """() => {
    const name = () => {
        document.querySelectorAll('.empty[aria-label]:not([role])').forEach(part => part.setAttribute('role', 'img'));
        document.querySelectorAll('button.upload-container').forEach(button => button.removeAttribute('aria-label'));
        const examples = document.querySelectorAll('#examples button.gallery-item:not([aria-label])');
        examples.forEach((button, number) => button.setAttribute('aria-label', `Example ${number + 1}`));
        const pictures = document.querySelectorAll('.image-container button:not([aria-label], .upload-container)');
        pictures.forEach(button => button.setAttribute('aria-label', 'Picture'));
    };
    name();
    const watched = {childList: true, subtree: true, attributeFilter: ['aria-label']};
    new MutationObserver(name).observe(document.body, watched);
}"""
SHOW_OUTCOME = "() => document.getElementById('outcome').scrollIntoView({behavior: 'smooth', block: 'center'})"


def run(predictor: Predictor, host: str | None = LOOPBACK, port: int | None = None) -> None:
    """Serve the page, and print its address, until interrupted; see :func:`serving` for the arguments."""
    with serving(predictor, host, port) as address:
        print(address, flush=True)
        threading.Event().wait()


@contextlib.contextmanager
def serving(predictor: Predictor, host: str | None = LOOPBACK, port: int | None = None) -> Iterator[str]:
    """Serve the page while the block of a ``with`` statement runs; yield its address.

    Args:
        predictor: Model, and the initial settings.
        host: Address to listen on; None, for a Space, takes it from the environment.
        port: Port to listen on; by default the first free one from 7860.

    Raises:
        ValueError: if there is no such port.
        OSError: if the port is taken.
    """
    if port is not None and not 0 < port < 2**16:
        raise ValueError(f"expected a port from 1 to {2**16 - 1}, got {port}")

    # A separate folder, because Gradio serves everything in its usual ones.
    with (
        tempfile.TemporaryDirectory(prefix="hcast-zoo-demo-") as folder,
        _environment(GRADIO_TEMP_DIR=folder, GRADIO_EXAMPLES_CACHE=folder, GRADIO_ALLOWED_PATHS=""),
    ):
        largest = MAX_UPLOAD + 2**16
        inner = [
            Middleware(Guard, folder=folder, largest=largest, space=host is None),
            Middleware(RequestBodyLimitMiddleware, max_body_size=largest),
        ]
        if host is not None:  # against DNS rebinding: another site's name could point to this machine
            inner.insert(0, Middleware(TrustedHostMiddleware, allowed_hosts=[host, "localhost"], www_redirect=False))

        app = build_app(predictor)
        try:
            app.launch(
                server_name=host,
                server_port=port,
                share=False,
                prevent_thread_lock=True,
                quiet=True,
                max_file_size=MAX_UPLOAD,
                app_kwargs={"middleware": inner},
                state_session_capacity=MAX_SESSIONS,
                footer_links=[],
                run_history=False,
                enable_monitoring=False,
                ssr_mode=False,
                pwa=False,
                mcp_server=False,
                theme=_theme(),
                css_paths=Path(__file__).with_name("demo.css"),
            )
        except OSError as error:
            if port is None:
                raise
            raise OSError(f"port {port} is not available: choose another, or none for the first free one") from error

        try:
            yield app.local_url
        finally:
            app.close(verbose=False)


def build_app(predictor: Predictor) -> gr.Blocks:
    """Return the page as a Gradio app, which makes no outgoing connections.

    Args:
        predictor: Model, and the initial settings.
    """
    config = predictor.model.config
    with gr.Blocks(
        title=f"{model_name(predictor)}: hcast-zoo", analytics_enabled=False, delete_cache=(KEEP, KEEP)
    ) as app:
        gr.HTML(heading_html(predictor), apply_default_css=False)

        with gr.Row():
            with gr.Column(scale=3, min_width=280):
                picture = _picture(*offered_examples(predictor))
                settings = _settings(predictor)

            with gr.Column(scale=4, min_width=320):
                message = gr.HTML(elem_id="message", apply_default_css=False)
                answer = gr.HTML(
                    caption_html("Drop a picture to see what it is."),
                    js_on_load=CLICK,
                    elem_id="answer",
                    apply_default_css=False,
                )

            with gr.Column(scale=3, min_width=280):
                panel = gr.Image(
                    label="Segments", format="png", interactive=False, buttons=["fullscreen"], elem_id="panel"
                )
                caption = gr.HTML(elem_id="caption", apply_default_css=False)
                stage = gr.Slider(
                    0,
                    NUM_STAGES + config.last_pool,
                    step=1,
                    value=0,
                    elem_id="stage",
                    buttons=[],
                    label="Stage",
                    info="0: the picture, 1: superpixels, 2 and up: coarser and coarser segments",
                )

        looks = gr.State(None, time_to_live=KEEP)
        adaptation = _adaptation()
        target, steps, button, outcome, sheet = adaptation

        gr.on(
            [picture.change, *(s.change for s in settings)],
            functools.partial(classify, predictor),
            [picture, stage, *settings],
            [message, answer, looks, panel, caption, outcome, sheet],
            trigger_mode="always_last",
            api_name="classify",
            **LOOKS,
        )

        stage.change(
            show_stage,
            [looks, stage],
            [panel, caption],
            trigger_mode="always_last",
            show_progress="hidden",
            api_name="show_stage",
        )

        gr.on(
            [button.click, target.submit],
            functools.partial(adapt, predictor),
            [picture, target, steps, *settings],
            [outcome, sheet],
            api_name="adapt",
            **ADAPTATIONS,
        )

        # Gradio recognises the event's argument by its annotation, which it cannot read from a partial function.
        def adapt_to_click(event: gr.EventData, file: str | None, *controls) -> tuple:
            return event.node, *adapt(predictor, file, event.node, *controls)

        answer.click(
            adapt_to_click,
            [picture, steps, *settings],
            [target, outcome, sheet],
            api_visibility="private",
            **ADAPTATIONS,
        ).then(None, js=SHOW_OUTCOME)

        app.load(None, js=NAME_PARTS)

    refuse_other_files(app, picture.GRADIO_CACHE)
    explain_errors(app)
    return app


def classify(predictor: Predictor, file: str | None, stage: int, *settings) -> tuple:
    """Return message, answer, panels and captions, the chosen one of each, and two empty outputs for adaptation."""
    nothing = "", "", None, None, "", "", gr.Image(visible=False)
    if file is None:
        return "", caption_html("Drop a picture to see what it is."), *nothing[2:]

    try:
        chosen = configure(predictor, *settings)
        look = look_at(chosen, file)
    except (ValueError, OSError) as error:
        return message_html(error_text(error)), *nothing[1:]

    answer = answer_html(look, predictor.taxonomy, predictor.model.config.head_stages)
    shown = look.panels, look.captions
    return "", answer, shown, *show_stage(shown, stage), *nothing[5:]


def show_stage(shown: tuple | None, stage: int) -> tuple:
    """Return the panel of a stage, and its caption."""
    if shown is None:
        return None, ""

    panels, captions = shown
    return panels[stage], caption_html(captions[stage])


def adapt(predictor: Predictor, file: str | None, target: str, steps: int, *settings) -> tuple:
    """Adapt to a target; return the outcome as HTML, and the before and after sheet."""
    if file is None or not target:
        hint = "Drop a picture first." if file is None else "Click a node of the tree, or write its name."
        return message_html(hint), gr.Image(visible=False)

    try:
        text, sheet = adapt_to(configure(predictor, *settings), file, target, AdaptConfig(steps=int(steps)))
    except (ValueError, OSError) as error:
        return message_html(error_text(error)), gr.Image(visible=False)
    return text, gr.Image(sheet, visible=True)


def configure(
    predictor: Predictor, decoder: str, within: list[str], stop: bool, threshold: float, *clusters: int
) -> Predictor:
    """Return the predictor with the settings of the page's controls."""
    default = predictor.model.config.num_clusters
    counts = [int(n) for n in clusters]
    # There is no slider for the last pooling if the model does not have it; its count then affects no label.
    counts += [min(n, counts[-1]) for n in default[len(counts) :]]
    nodes = [str(node) for node in within or ()]  # a visitor writes them, so they may be anything
    return predictor.with_settings(
        decoder, within=nodes or None, threshold=threshold if stop else None, num_clusters=tuple(counts)
    )


def _picture(examples: list[Path], heading: str) -> gr.Image:
    """Make the picture input, which passes the path of an uploaded file, and of no other, to the core.

    Gradio's own reader fails without a reason on a file that is not a picture, and fetches any URL that it is given.
    """
    picture = gr.Image(
        label="Picture",
        type="filepath",
        image_mode=None,
        format="png",
        sources=["upload", "clipboard"],
        buttons=["fullscreen"],
        height=260,
        elem_id="picture",
    )
    move = picture.async_move_resource_to_block_cache

    async def move_file(path: str | Path | None) -> str | None:
        if re.match("[a-z]+:", str(path), re.IGNORECASE):
            raise gr.Error(REFUSED, print_exception=False)
        return await move(path)

    # Set on the object: for a subclass of a component, Gradio would write a .pyi file beside this module.
    picture.preprocess = lambda payload: payload and check_upload(payload.path, picture.GRADIO_CACHE)
    picture.async_move_resource_to_block_cache = move_file
    if examples:
        # Not gr.Examples: it replaces the component, with its overridden methods, for the session.
        shown = gr.Dataset(
            components=[gr.Image(render=False)],
            samples=[[str(path)] for path in examples],
            label=heading,
            elem_id="examples",
        )
        shown.click(_open_example, shown, picture, show_progress="hidden", api_name="example")

    return picture


def _open_example(sample: list | None) -> Image.Image | None:
    """Return the picture of an example; None for a request that chooses none."""
    return Image.open(sample[0]) if sample else None


def _settings(predictor: Predictor) -> list[gr.components.Component]:
    """Make the controls, in the order of the arguments of :func:`configure`."""
    config = predictor.model.config
    clusters = (predictor.num_clusters or config.num_clusters)[: NUM_STAGES - 1 + config.last_pool]
    threshold = predictor.threshold
    with gr.Accordion("Settings", open=False, elem_id="settings"):
        settings = [
            gr.Dropdown(
                [(DECODINGS[name], name) for name in DECODERS],
                value=predictor.decoder,
                label="Path",
                info="How the probabilities of all levels become one path",
                elem_id="decoder",
            ),
            gr.Dropdown(
                subtrees(predictor.taxonomy),
                value=list(predictor.within or []),
                multiselect=True,
                allow_custom_value=True,
                label="Only within",
                elem_id="within",
                info="Parts of the tree to choose the answer from; you can also type the name of any node",
            ),
            gr.Checkbox(
                threshold is not None,
                label="Stop where it is unsure",
                elem_id="stop",
                info="Stop at the deepest node on which the levels agree and which is probable enough",
            ),
            gr.Slider(
                0,
                1,
                0.5 if threshold is None else threshold,
                label="Stop below this probability",
                info="0.5: more likely right than wrong; the higher, the fewer names, and the fewer wrong ones",
                elem_id="threshold",
            ),
        ]
        for stage, count in enumerate(clusters, 2):
            slider = gr.Slider(
                1,
                config.num_superpixels,
                count,
                step=1,
                label=f"Segments at stage {stage}",
                info="At most as many as at the stage before; fewer are larger",
                elem_id=f"clusters-{stage}",
            )
            settings.append(slider)

    return settings


def _adaptation() -> tuple:
    with gr.Column(elem_id="adaptation"):
        gr.HTML(
            "<h2>Not what you see?</h2>"
            + caption_html(
                "Click a node of the tree, or type the name of any node. For this picture only, the model takes a few "
                "steps towards that label, and its segments change: the first row is before, the second one after."
            ),
            apply_default_css=False,
        )

        with gr.Row(equal_height=True):
            target = gr.Textbox(
                label="Adapt to", placeholder="name of a node", max_length=500, elem_id="target", scale=3
            )
            steps = gr.Slider(
                1,
                20,
                AdaptConfig().steps,
                step=1,
                label="Steps",
                info="More steps change more",
                elem_id="steps",
                scale=2,
                buttons=[],
            )
            button = gr.Button("Adapt", variant="primary", elem_id="adapt", scale=1)

        outcome = gr.HTML(elem_id="outcome", apply_default_css=False)
        sheet = gr.Image(
            show_label=False,
            format="png",
            interactive=False,
            visible=False,
            buttons=["fullscreen", "download"],
            elem_id="sheet",
        )

    return target, steps, button, outcome, sheet


def _theme() -> gr.themes.Base:
    """Return a theme with system fonts, so that none is fetched, and with readable grey text."""
    theme = gr.themes.Default(primary_hue="emerald", font=["system-ui", "sans-serif"], font_mono=["monospace"])
    return theme.set(body_text_color_subdued="*neutral_500", block_info_text_color="*neutral_500")


@contextlib.contextmanager
def _environment(**variables: str) -> Iterator[None]:
    """Set environment variables, from which Gradio takes some settings, while a block runs."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)

    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
