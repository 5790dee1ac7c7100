"""Build the tree over ImageNet's 1000 classes: kinds > groups > objects, from WordNet's hypernyms.

    apt-get download wordnet-base && dpkg -x wordnet-base_*.deb wordnet
    python recipes/imagenet_tree.py wordnet/usr/share/wordnet/data.noun

Writes ``hcast_zoo/paper/label_trees/imagenet.json``. Each class goes to the first group below that names one of its
WordNet ancestors (or the class itself). WordNet's own upper levels ("instrumentality", "whole") are not words that
people use for what a picture shows, so the kinds and groups, and their names, are chosen here by hand.
"""

import argparse
import json
from pathlib import Path

from timm.data import ImageNetInfo

TARGET = Path(__file__).parents[1] / "hcast_zoo/paper/label_trees/imagenet.json"
LICENSE = (
    "Classes, names and hypernyms: WordNet 3.0, Copyright 2006 by Princeton University. All rights reserved. "
    "Permission to use, copy, modify and distribute this software and database and its documentation for any purpose "
    "and without fee or royalty is hereby granted, provided that you agree to comply with the following copyright "
    "notice and statements, including the disclaimer, and that the same appear on ALL copies of the software, database "
    "and documentation, including modifications that you make for internal use or for distribution. THIS SOFTWARE AND "
    'DATABASE IS PROVIDED "AS IS" AND PRINCETON UNIVERSITY MAKES NO REPRESENTATIONS OR WARRANTIES, EXPRESS OR IMPLIED. '
    "BY WAY OF EXAMPLE, BUT NOT LIMITATION, PRINCETON UNIVERSITY MAKES NO REPRESENTATIONS OR WARRANTIES OF MERCHANT- "
    "ABILITY OR FITNESS FOR ANY PARTICULAR PURPOSE OR THAT THE USE OF THE LICENSED SOFTWARE, DATABASE OR DOCUMENTATION "
    "WILL NOT INFRINGE ANY THIRD PARTY PATENTS, COPYRIGHTS, TRADEMARKS OR OTHER RIGHTS. The name of Princeton "
    "University or Princeton may not be used in advertising or publicity pertaining to distribution of the software "
    "and/or database. Title to copyright in this software, database and any associated documentation shall at all "
    "times remain with Princeton University and LICENSEE agrees to preserve same. Kinds and groups: hcast-zoo."
)

# kind, group, and the WordNet nodes (by their first word) whose classes belong there; the first match counts.
GROUPS = """
mammal | terrier | terrier
mammal | hound | hound
mammal | gun dog | sporting dog
mammal | herding dog | shepherd dog
mammal | toy dog | toy dog, toy spaniel, toy poodle, miniature poodle, pug, Chihuahua
mammal | spitz and sled dog | spitz, sled dog, Siberian husky, basenji
mammal | guard and working dog | working dog, dog
mammal | wild dog | canine
mammal | cat | domestic cat
mammal | wild cat | feline
mammal | bear and panda | bear, giant panda, lesser panda
mammal | weasel, mongoose and kin | musteline mammal, viverrine
mammal | monkey, ape and lemur | primate
mammal | hoofed animal | ungulate
mammal | elephant | elephant, proboscidean, tusker
mammal | whale, seal and sea cow | aquatic mammal
mammal | rodent and rabbit | rodent, leporid mammal, leporid
mammal | marsupial and monotreme | marsupial, monotreme
mammal | armadillo and sloth | edentate
bird | songbird | oscine
bird | game bird and poultry | gallinaceous bird, cock, hen
bird | bird of prey and owl | bird of prey
bird | parrot | parrot
bird | duck, goose and swan | anseriform bird, black swan
bird | wading bird and shorebird | wading bird, European gallinule
bird | seabird | seabird
bird | hummingbird, hornbill and other bird | bird
reptile or amphibian | snake | snake
reptile or amphibian | lizard | lizard
reptile or amphibian | turtle | chelonian
reptile or amphibian | crocodile and dinosaur | archosaur, diapsid
reptile or amphibian | frog and salamander | amphibian
fish or sea animal | shark and ray | cartilaginous fish
fish or sea animal | bony fish | fish
fish or sea animal | crab and lobster | crustacean
fish or sea animal | shellfish and octopus | mollusk
fish or sea animal | coral, jellyfish and starfish | coelenterate, echinoderm, sea anemone, coral reef
insect, spider or worm | beetle | beetle
insect, spider or worm | butterfly and moth | lepidopterous insect
insect, spider or worm | dragonfly | odonate
insect, spider or worm | other insect | insect
insect, spider or worm | spider and scorpion | arachnid
insect, spider or worm | worm and other small animal | worm, arthropod, invertebrate
plant or fungus | flower | flower
plant or fungus | mushroom | fungus, mushroom
plant or fungus | seed and cone | acorn, hip, ear, buckeye, corn, rapeseed, hay
food or drink | fruit | edible fruit
food or drink | vegetable | vegetable
food or drink | bread and pastry | baked goods, dough
food or drink | dessert | dessert, chocolate sauce
food or drink | drink | beverage, espresso, eggnog, cup
food or drink | dish | nutriment, guacamole, carbonara, plate
food or drink | menu | menu
person | person | person
vehicle | car | beach wagon, ambulance, cab, convertible, jeep, limousine, Model T, racer, sports car, minivan
vehicle | truck and work vehicle | truck, tractor, forklift, snowplow, half track
vehicle | truck and work vehicle | harvester, thresher, tank, amphibian, golfcart
vehicle | bus and camper | bus, recreational vehicle, mobile home
vehicle | bicycle and motorcycle | bicycle, motor scooter, moped, tricycle, unicycle, go-kart
vehicle | train and tram | locomotive, streetcar, freight car, passenger car, bullet train
vehicle | boat and ship | vessel craft, boat, ship, sailing vessel, paddle
vehicle | aircraft and spacecraft | aircraft, spacecraft, missile, parachute, wing
vehicle | cart and sled | cart, sled, snowmobile, handcart, stretcher
vehicle | vehicle part | car wheel, car mirror, disk brake, seat belt, grille, gas pump
clothing | dress and gown | gown, kimono, abaya, hoopskirt, overskirt, miniskirt, sarong, vestment, academic gown
clothing | coat, suit and uniform | cloak, coat, suit, military uniform, poncho, trench coat
clothing | swimwear and underwear | swimsuit, brassiere, diaper, pajama, maillot
clothing | shirt, sweater and trousers | shirt, sweater, trouser, jersey, apron, bib
clothing | hat and helmet | cap headdress, headdress, pickelhaube, wig, bearskin, crash helmet
clothing | shoe and sock | footwear, hosiery, Christmas stocking
clothing | armour and protection | armor, bulletproof vest, knee pad, shield, breastplate, neck brace
clothing | mask | mask, gasmask, ski mask, oxygen mask, snorkel
clothing | scarf, tie, glove and jewellery | necktie, scarf, mitten, necklace
clothing | scarf, tie, glove and jewellery | hair slide, buckle, sunglass, sunglasses
clothing | bag and purse | bag, wallet, backpack
furniture or household | bed and bedding | bed, baby bed, quilt, pillow, studio couch
furniture or household | seat | seat
furniture or household | table and desk | table, desk
furniture or household | cupboard and shelf | bookcase, wardrobe, cabinet
furniture or household | cupboard and shelf | chiffonier, file, entertainment center, plate rack
furniture or household | curtain, rug and towel | curtain, window shade, mat, rug, doormat
furniture or household | curtain, rug and towel | prayer rug, towel, dishrag, handkerchief, velvet, wool
furniture or household | lamp and candle | lamp, torch, lampshade, lighter
furniture or household | bath and toilet | bathtub, tub, washbasin, toilet tissue, soap dispenser, plunger
furniture or household | cosmetics and toiletry | toiletry, nipple, Band Aid
furniture or household | screen and umbrella | screen, mosquito net, umbrella, shoji
furniture or household | home appliance | iron, sewing machine, vacuum, dishwasher, refrigerator
furniture or household | home appliance | washer, space heater, electric fan, hand blower, radiator, stove
furniture or household | toy, doll and game | teddy, jigsaw puzzle, crossword puzzle, pinwheel, swing
furniture or household | toy, doll and game | carousel, jack-o'-lantern, comic book, maze, bubble
kitchenware or container | cooking appliance | kitchen appliance, espresso maker, Crock Pot
kitchenware or container | pot and pan | pan, pot, caldron, coffeepot, teapot, Dutch oven
kitchenware or container | bowl, cup and glass | bowl, mug, coffee mug, glass, pitcher, measuring cup
kitchenware or container | bowl, cup and glass | mortar, beaker, vase, Petri dish, goblet, tray
kitchenware or container | bottle and jug | bottle, jug, bottlecap
kitchenware or container | cutlery and utensil | spoon, spatula, ladle, strainer
kitchenware or container | cutlery and utensil | can opener, corkscrew, cleaver, cocktail shaker, saltshaker
kitchenware or container | box, basket and barrel | container, rain barrel
tool or weapon | gun and cannon | gun, holster, projectile
tool or weapon | blade and bow | bow, scabbard, letter opener, hatchet, guillotine
tool or weapon | hand tool | tool, carpenter's kit, cleaning implement, paintbrush, nail, screw, hook
tool or weapon | hand tool | chain, knot, thimble, spindle, stick, crutch, flagpole, pole
tool or weapon | lock and fastener | lock, safety pin, fastener, muzzle
tool or weapon | pen and office supply | pen, rubber eraser, pencil sharpener, binder, envelope, packet, book jacket
musical instrument | piano and organ | keyboard instrument, accordion
musical instrument | string instrument | stringed instrument, pick
musical instrument | wind instrument | wind instrument, whistle
musical instrument | drum and percussion | percussion instrument, drumstick
electronics or instrument | computer | computer, keyboard, mouse, printer, hard disc
electronics or instrument | computer | modem, joystick, space bar, web site, photocopier
electronics or instrument | phone, radio and television | telephone, radio, television
electronics or instrument | phone, radio and television | monitor, tape player, cassette player, CD player
electronics or instrument | phone, radio and television | iPod, cassette, remote control
electronics or instrument | phone, radio and television | loudspeaker, microphone, screen display, projector
electronics or instrument | camera and lens | camera, lens cap, tripod, loupe, optical instrument, telescope
electronics or instrument | clock and timepiece | timepiece
electronics or instrument | measuring and medical instrument | measuring instrument, magnetic compass
electronics or instrument | measuring and medical instrument | oscilloscope, stethoscope, syringe
electronics or instrument | measuring and medical instrument | sundial, abacus, slide rule
electronics or instrument | measuring and medical instrument | navigational instrument, medical instrument, instrument
electronics or instrument | machine and device | machine, lifting device, switch, reel
electronics or instrument | machine and device | coil, solar dish, plow, oil filter, device
sport | ball | ball, puck
sport | sports equipment | gymnastic apparatus, barbell, dumbbell, racket
sport | sports equipment | ski, sports equipment, snorkel, paddle, scoreboard
building or place | house and hut | dwelling, barn, greenhouse, palace, apiary
building or place | house and hut | boathouse, birdhouse, mountain tent, patio, lumbermill, prison
building or place | church, temple and monument | place of worship, church, mosque, altar, obelisk, totem pole
building or place | church, temple and monument | memorial, megalith, triumphal arch
building or place | church, temple and monument | monastery, bell cote, maypole, pedestal
building or place | castle and tower | castle, tower, water tower, planetarium, theater, library, stage
building or place | shop and restaurant | establishment, restaurant, bakery, shop
building or place | bridge, dam and dock | bridge, viaduct, dam, breakwater, dock, pier, drilling platform
building or place | fence, wall and gate | barrier
building or place | roof and building part | roof, honeycomb, fountain, spider web
building or place | street furniture | street sign, traffic light, manhole cover, mailbox, parking meter
landscape | mountain and valley | mountain, cliff, valley, geological formation
landscape | coast and lake | seashore, lakeside, sandbar, promontory
"""


NAMES = {"n02012849": "crane (bird)", "n03126707": "crane (machine)", "n03710637": "maillot (one piece)"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("database", type=Path, help="WordNet 3.0's data.noun")
    args = parser.parse_args()

    tree = build(read_nouns(args.database))
    TARGET.write_text(json.dumps(tree, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")
    print(f"{TARGET.name}: {' > '.join(str(len(tree['names'][level])) for level in tree['levels'])}")


def read_nouns(path: Path) -> dict[str, tuple[list[str], list[str]]]:
    """Return synset offset to its words and its hypernyms' offsets."""
    nouns = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("  "):  # the licence at the top
            continue

        fields = line.split("|")[0].split()
        num_words = int(fields[3], 16)
        words = [fields[4 + 2 * i].replace("_", " ") for i in range(num_words)]

        start = 5 + 2 * num_words
        pointers = [fields[start + 4 * i : start + 4 * i + 2] for i in range(int(fields[start - 1]))]
        nouns[fields[0]] = (words, [offset for kind, offset in pointers if kind in ("@", "@i")])

    return nouns


def ancestors(nouns: dict, offset: str) -> set[str]:
    """Return the first words of a synset and of everything that it is a kind of."""
    words = {nouns[offset][0][0]}
    for parent in nouns[offset][1]:
        words |= ancestors(nouns, parent)
    return words


def find_group(groups: list[tuple[str, str, set[str]]], words: set[str]) -> tuple[str, str] | None:
    """Return the kind and the name of the first group that has one of these words; None if there is none."""
    for kind, group, nodes in groups:
        if words & nodes:
            return kind, group
    return None


def build(nouns: dict) -> dict:
    """Return the tree in the format of the JSON files in ``label_trees``."""
    nodes_of: dict[tuple[str, str], set[str]] = {}
    for line in GROUPS.strip().splitlines():
        kind, group, nodes = (part.strip() for part in line.split(" | "))
        nodes_of.setdefault((kind, group), set()).update(node.strip() for node in nodes.split(","))

    groups = [(kind, group, nodes) for (kind, group), nodes in nodes_of.items()]
    kinds = list(dict.fromkeys(kind for kind, _, _ in groups))
    names = [group for _, group, _ in groups]
    info = ImageNetInfo("imagenet-1k")
    paths, leaves, missing = [], [], []
    for index, synset in enumerate(info.label_names()):
        class_words = nouns[synset[1:]][0]
        # A class's own word decides before what it is a kind of.
        match = find_group(groups, {class_words[0]}) or find_group(groups, ancestors(nouns, synset[1:]))
        if match is None:
            missing.append(f"{synset} {class_words}")
            continue

        kind, group = match
        paths.append([kinds.index(kind), names.index(group), index])
        leaves.append(NAMES.get(synset, class_words[0]))

    if missing:
        raise SystemExit("no group for: " + "; ".join(missing))

    return {
        "dataset": "ImageNet",
        "license": LICENSE,
        "levels": ["kind", "group", "object"],
        "names": {"kind": kinds, "group": names, "object": leaves},
        "leaf_ids": info.label_names(),
        "paths": paths,
    }


if __name__ == "__main__":
    main()
