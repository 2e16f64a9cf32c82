"""The facts of the small world. Every fact has one right answer."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping


def _table(text: str) -> Mapping[str, str]:
    """Parse a table written as `name:value, name:value`."""
    pairs = (entry.strip().partition(":") for entry in text.split(","))
    return {name: value for name, _, value in pairs}


CATEGORIES: Mapping[str, tuple[str, ...]] = {
    "animal": tuple(
        "dog cat cow horse sheep pig goat hen duck goose lion bear wolf fox frog bee mouse owl "
        "fish whale spider rabbit deer monkey".split()
    ),
    "fruit": tuple("apple banana lemon orange plum cherry grape pear peach melon".split()),
    "vegetable": tuple("carrot potato onion tomato pea bean pumpkin cabbage leek beet".split()),
    "tool": tuple("hammer saw knife spade brush needle broom ladder drill axe".split()),
    "garment": tuple("hat coat shoe sock glove scarf shirt dress belt boot".split()),
    "vehicle": tuple("car bus train boat bike truck plane tram van ship".split()),
    "toy": tuple("ball doll kite drum puzzle robot block puppet swing whistle".split()),
    "room": tuple("kitchen bathroom bedroom hall cellar attic office garage".split()),
}
CATEGORY_OF = {name: kind for kind, names in CATEGORIES.items() for name in names}
COLOURS = tuple("red blue green yellow orange purple brown black white grey pink".split())
COLOUR_OF = _table("""
    lemon:yellow, banana:yellow, cherry:red, tomato:red, plum:purple, carrot:orange,
    pumpkin:orange, pea:green, frog:green, cabbage:green, potato:brown, bear:brown, deer:brown,
    wolf:grey, mouse:grey, whale:blue, pig:pink, sheep:white, goose:white, spider:black,
    bean:green, beet:purple, onion:white, peach:pink, pear:green, grape:purple, melon:green,
    leek:green, apple:red, duck:yellow, hen:brown, fox:orange, owl:brown, horse:brown,
    cow:white, goat:white, lion:yellow, rabbit:grey, monkey:brown, hammer:black, saw:grey,
    spade:brown, broom:yellow, ladder:brown, axe:red, hat:black, coat:blue, shoe:brown,
    sock:white, glove:red, scarf:green, shirt:white, dress:pink, belt:black, boot:black,
    car:red, bus:yellow, train:green, boat:white, bike:blue, truck:grey, plane:white, tram:red,
    van:blue, ship:grey, ball:red, doll:pink, kite:blue, drum:orange, robot:grey, puppet:green,
    whistle:black
""")
SOUND_OF = _table("""
    dog:woof, cat:meow, cow:moo, sheep:baa, pig:oink, duck:quack, horse:neigh, hen:cluck,
    lion:roar, frog:croak, bee:buzz, mouse:squeak, owl:hoot, goose:honk, wolf:howl, goat:maa,
    bear:growl, fox:yelp, monkey:chatter
""")
HOME_OF = _table("""
    dog:kennel, cow:barn, horse:stable, pig:sty, hen:coop, bee:hive, spider:web, fox:den,
    mouse:hole, fish:pond, whale:sea, lion:plain, bear:cave, wolf:forest, owl:tree,
    rabbit:burrow, deer:wood, monkey:jungle, frog:ditch, goat:hill, sheep:field
""")
YOUNG_OF = _table("""
    dog:puppy, cat:kitten, cow:calf, sheep:lamb, pig:piglet, horse:foal, hen:chick,
    duck:duckling, goose:gosling, lion:cub, goat:kid, frog:tadpole, owl:owlet, deer:fawn,
    rabbit:bunny, fox:pup, bear:whelp
""")
FOOD_OF = _table("""
    dog:meat, cat:fish, cow:grass, horse:hay, sheep:clover, pig:roots, hen:corn, duck:weeds,
    mouse:cheese, rabbit:carrots, monkey:bananas, bear:honey, lion:zebras, frog:flies, owl:mice,
    spider:insects, fox:eggs, goat:leaves, bee:nectar, wolf:deer, whale:shrimp
""")
LEGS_OF: Mapping[str, str] = {
    **dict.fromkeys(
        "dog cat cow horse sheep pig goat lion bear wolf fox frog mouse rabbit deer".split(), "four"
    ),
    **dict.fromkeys("hen duck goose owl monkey".split(), "two"),
    "bee": "six",
    "spider": "eight",
    "fish": "no",
    "whale": "no",
}
_OPPOSITES = _table("""
    hot:cold, big:small, tall:short, fast:slow, happy:sad, day:night, up:down, wet:dry,
    full:empty, hard:soft, old:new, light:dark, loud:quiet, early:late, open:closed,
    clean:dirty, rich:poor, strong:weak, good:bad, near:far, left:right, high:low, thick:thin,
    young:aged, sweet:sour, first:last, inside:outside, true:false, heavy:weightless, brave:shy,
    wide:narrow, deep:shallow
""")
OPPOSITE_OF: Mapping[str, str] = {
    word: opposite for a, b in _OPPOSITES.items() for word, opposite in ((a, b), (b, a))
}
USE_OF = _table("""
    knife:cutting, saw:sawing, hammer:hitting nails, spade:digging, brush:painting,
    needle:sewing, broom:sweeping, ladder:climbing, drill:making holes, axe:chopping wood,
    pen:writing, cup:drinking, bed:sleeping, oven:baking, soap:washing, lamp:giving light,
    book:reading, chair:sitting, clock:telling time, umbrella:keeping dry, bag:carrying things
""")
JOB_OF = _table("""
    bakes bread:baker, grows food:farmer, heals people:doctor, puts out fires:firefighter,
    teaches children:teacher, flies planes:pilot, catches fish:fisher, cooks meals:cook,
    paints pictures:painter, drives a bus:driver, brings letters:postman, builds houses:builder,
    cuts hair:barber, sings songs:singer, mends shoes:cobbler, sells meat:butcher,
    writes books:writer, sews clothes:tailor, pulls teeth:dentist, helps sick animals:vet
""")
_IRREGULAR = _table("""
    sheep:sheep, goose:geese, wolf:wolves, fox:foxes, mouse:mice, fish:fish, deer:deer,
    cherry:cherries, peach:peaches, potato:potatoes, tomato:tomatoes, knife:knives,
    brush:brushes, scarf:scarves, dress:dresses, bus:buses
""")
PLURAL_OF: Mapping[str, str] = {
    name: _IRREGULAR.get(name, f"{name}s") for name, kind in CATEGORY_OF.items() if kind != "room"
}
PAST_OF = _table("""
    walk:walked, jump:jumped, play:played, look:looked, cook:cooked, run:ran, go:went, eat:ate,
    see:saw, sing:sang, drink:drank, swim:swam, give:gave, take:took, make:made, find:found,
    sleep:slept, write:wrote, read:read, sit:sat, stand:stood, come:came, fall:fell, fly:flew,
    grow:grew, know:knew, say:said, tell:told, buy:bought, bring:brought, think:thought,
    catch:caught, break:broke, help:helped, wait:waited, laugh:laughed
""")
DAYS = tuple("Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split())
MONTHS = tuple(
    "January February March April May June July August September October November December".split()
)
SIZE_ORDER = tuple(
    "bee mouse frog duck cat fox dog sheep pig deer lion cow horse bear whale".split()
)
NUMBER_WORDS = tuple("zero one two three four five six seven eight nine ten eleven twelve".split())
CHILDREN = tuple("Tom Anna Ben Lily Max Mia Sam Lucy Leo Emma Jack Rosa".split())
PLACES = tuple("park garden school forest beach farm market river".split())
NOUNS = sorted(PLURAL_OF)
"""Nouns for lists and stories."""
THINGS = sorted(CATEGORIES["toy"] + CATEGORIES["garment"])
"""Nouns of what a child can own, lose or be given."""


def article(noun: str) -> str:
    """Return the noun with its article, a or an."""
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def held_out(kind: str, name: str) -> bool:
    """True if a fact is reserved for the evaluation.

    About a seventh of each kind is, by a fixed hash; of a pair of opposites, both words or none.
    """
    if kind == "opposite" and name in OPPOSITE_OF:
        name = "/".join(sorted((name, OPPOSITE_OF[name])))
    return hashlib.blake2b(f"cria/{kind}/{name}".encode(), digest_size=4).digest()[0] % 7 == 0


def known_members(kind: str) -> list[str]:
    """List the members of a category that tasks and answers may name: those not held out."""
    return [name for name in CATEGORIES[kind] if not held_out("category", name)]
