"""What can happen in the demo's world, and how a person might say it.

An event is a coloured shape doing something. Every sentence names all three attributes, each by one of several words,
so that a sentence fits an event or does not: there is no "almost". About a fifth of the combinations is held out:
training never shows them, validation asks for them.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import numpy as np

from sdst_runtime.errors import InputError

T = TypeVar("T")
Verb = tuple[str, str, str]  # "move", "moves", "moving"

COLOURS: dict[str, tuple[str, ...]] = {
    "red": ("red", "crimson", "scarlet"),
    "green": ("green", "emerald"),
    "blue": ("blue", "cobalt"),
    "yellow": ("yellow", "golden", "lemon"),
    "purple": ("purple", "violet"),
    "orange": ("orange", "tangerine"),
    "cyan": ("cyan", "turquoise", "aqua"),
    "white": ("white", "ivory", "snowy"),
}
SHAPES: dict[str, tuple[str, ...]] = {
    "circle": ("circle", "disc", "ball", "dot"),
    "square": ("square", "box", "block"),
    "triangle": ("triangle", "wedge"),
    "cross": ("cross", "plus", "plus sign"),
    "ring": ("ring", "hoop", "donut"),
}
_MOVE: tuple[Verb, ...] = (
    ("move", "moves", "moving"),
    ("slide", "slides", "sliding"),
    ("travel", "travels", "travelling"),
    ("drift", "drifts", "drifting"),
    ("go", "goes", "going"),
    ("glide", "glides", "gliding"),
    ("head", "heads", "heading"),
)
_RISE: tuple[Verb, ...] = (("rise", "rises", "rising"), ("climb", "climbs", "climbing"))
_FALL: tuple[Verb, ...] = (("fall", "falls", "falling"), ("sink", "sinks", "sinking"), ("drop", "drops", "dropping"))
_BECOME: tuple[Verb, ...] = (("get", "gets", "getting"), ("become", "becomes", "becoming"))
_GROW: tuple[Verb, ...] = (
    ("grow", "grows", "growing"),
    ("expand", "expands", "expanding"),
    ("swell", "swells", "swelling"),
)
_SHRINK: tuple[Verb, ...] = (("shrink", "shrinks", "shrinking"), ("contract", "contracts", "contracting"))
_BLINK: tuple[Verb, ...] = (
    ("blink", "blinks", "blinking"),
    ("flash", "flashes", "flashing"),
    ("flicker", "flickers", "flickering"),
)
# action -> (verbs, what may follow them); every verb of a row goes with every tail of it
ACTIONS: dict[str, tuple[tuple[tuple[Verb, ...], tuple[str, ...]], ...]] = {
    "left": ((_MOVE, ("left", "to the left", "leftwards", "towards the left side")),),
    "right": ((_MOVE, ("right", "to the right", "rightwards", "towards the right side")),),
    "up": ((_MOVE, ("up", "upwards", "towards the top")), (_RISE, ("", "upwards", "to the top"))),
    "down": (
        (_MOVE, ("down", "downwards", "towards the bottom")),
        (_FALL, ("", "downwards", "to the bottom")),
    ),
    "grow": ((_GROW, ("", "in size")), (_BECOME, ("bigger", "larger", "bigger and bigger"))),
    "shrink": ((_SHRINK, ("", "in size")), (_BECOME, ("smaller", "tinier", "smaller and smaller"))),
    "blink": ((_BLINK, ("", "on and off", "again and again")),),
}
_SALT = 153  # the first that spreads the held-out combinations evenly over every pair of attributes
OPPOSITE = {"left": "right", "right": "left", "up": "down", "down": "up", "grow": "shrink", "shrink": "grow"}

_NOUNS = (
    "{a} {colour} {shape}",
    "{a} {colour} {shape}",
    "the {colour} {shape}",
    "one {colour} {shape}",
    "a {shape} that is {colour}",
    "a {shape} coloured {colour}",
    "something {colour} shaped like a {shape}",
)
_ADJECTIVES = {"square": "square", "triangle": "triangular"}  # "round" would fit a circle and a ring
_ADJECTIVE_NOUNS = ("something {adjective} and {colour}", "a {adjective} {colour} thing")
_TEMPLATES = (
    "{noun} {finite}",
    "{noun} {finite}",
    "{noun} is {ing}",
    "{noun} {ing}",
    "when does {noun} {base}?",
    "when is {noun} {ing}?",
    "find {noun} {ing}",
    "show me {noun} {ing}",
    "there is {noun} {ing}",
    "the moment when {noun} {finite}",
    "the part of the video where {noun} {finite}",
    "we can see {noun} {ing}",
    "where in the video does {noun} {base}?",
)
# two events, one directly after the other: the pattern, and the form of both verbs; no word that _TEMPLATES lack, as
# the backbone's tokenizer knows no other
_SEQUENCES = (
    ("{first}, {second}", "finite"),
    ("{first}, {second}", "ing"),
    ("{first}. {second}", "finite"),
    ("the moment when {first}, {second}", "finite"),
    ("the part of the video where {first}, {second}", "finite"),
    ("find {first}, {second}", "ing"),
    ("show me {first}, {second}", "ing"),
    ("there is {first}, {second}", "ing"),
    ("we can see {first}, {second}", "ing"),
)
EMPTY_SENTENCES = (
    "nothing happens",
    "an empty scene",
    "the scene is empty",
    "nothing is there",
    "there is nothing to see",
    "only the background",
    "we can see only the background",
    "no shape is there",
    "when does nothing happen?",
)


@dataclass(frozen=True, order=True)
class Event:
    """A shape with a colour, doing something. The values are keys of COLOURS, SHAPES and ACTIONS."""

    colour: str
    shape: str
    action: str

    def __post_init__(self) -> None:
        for name, value, known in zip(("colour", "shape", "action"), self.key, (COLOURS, SHAPES, ACTIONS), strict=True):
            if value not in known:
                raise InputError(f"event: expected {name} to be one of {', '.join(known)}; got {value!r}")

    @property
    def key(self) -> tuple[str, str, str]:
        """(colour, shape, action)."""
        return self.colour, self.shape, self.action

    def __str__(self) -> str:
        return " ".join(self.key)


SEQUEL = " > "  # between the names of two events, one directly after the other
Subject = tuple[Event, ...]  # what a sentence is about: one event, or two, one directly after the other


def subject_name(subject: Subject) -> str:
    """Its events by name: "red ring left", or "red ring left > blue box grow"."""
    return SEQUEL.join(map(str, subject))


def all_events() -> tuple[Event, ...]:
    """Every combination of attributes, in a fixed order."""
    return tuple(Event(colour, shape, action) for colour in COLOURS for shape in SHAPES for action in ACTIONS)


def labels(event: Event) -> tuple[int, int, int]:
    """Class indices of (colour, shape, action), for probes."""
    return tuple(list(known).index(value) for known, value in zip((COLOURS, SHAPES, ACTIONS), event.key, strict=True))  # type: ignore[return-value]


@functools.cache
def is_held_out(event: Event) -> bool:
    """True for the fifth of the combinations that training never shows. The same on every machine and run."""
    digest = hashlib.sha256(f"{_SALT} {' '.join(event.key)}".encode()).digest()
    return digest[0] * 256 + digest[1] < 65536 // 5


def differences(one: Event, other: Event) -> int:
    """Number of attributes, 0 to 3, in which two events differ."""
    return sum(a != b for a, b in zip(one.key, other.key, strict=True))


def random_event(rng: np.random.Generator, *, held_out: bool) -> Event:
    """A combination drawn evenly from the held-out ones, or from the others."""
    return pick(rng, _by_held_out()[held_out])


def one_attribute_away(event: Event, rng: np.random.Generator, allowed: Callable[[Event], bool]) -> Event | None:
    """An allowed event that differs from `event` in exactly one attribute; None when none is allowed.

    Colour, shape and action take turns evenly; every second change of action is to the opposite one (left and right,
    grow and shrink), since those look the most alike.
    """
    names = [field.name for field in fields(event)]
    for name in (names[i] for i in rng.permutation(len(names))):
        values = {"colour": COLOURS, "shape": SHAPES, "action": ACTIONS}[name]
        others = [replace(event, **{name: value}) for value in values if value != getattr(event, name)]
        if name == "action" and event.action in OPPOSITE and rng.random() < 0.5:
            opposite = replace(event, action=OPPOSITE[event.action])
            others = [opposite] if allowed(opposite) else others
        others = [other for other in others if allowed(other)]
        if others:
            return pick(rng, others)
    return None


def sentence(event: Event, rng: np.random.Generator) -> str:
    """One sentence that describes `event`, drawn from the grammar."""
    noun, forms = _words(event, rng)
    return pick(rng, _TEMPLATES).format(noun=noun, **forms)


def sequence_sentence(first: Event, second: Event, rng: np.random.Generator) -> str:
    """One sentence that describes two events, one directly after the other."""
    spoken = [_words(event, rng) for event in (first, second)]
    pattern, form = pick(rng, _SEQUENCES)
    one, other = (f"{noun} {forms[form]}" for noun, forms in spoken)
    return pattern.format(first=one, second=other)


def _words(event: Event, rng: np.random.Generator) -> tuple[str, dict[str, str]]:
    """What the object is called, and what it does: base, finite and ing."""
    colour, shape = pick(rng, COLOURS[event.colour]), pick(rng, SHAPES[event.shape])
    forms = _NOUNS + (_ADJECTIVE_NOUNS if event.shape in _ADJECTIVES else ())
    noun = pick(rng, forms).format(
        a="an" if colour[0] in "aeiou" else "a", colour=colour, shape=shape, adjective=_ADJECTIVES.get(event.shape, "")
    )
    verbs, tails = pick(rng, ACTIONS[event.action])
    verb, tail = pick(rng, verbs), pick(rng, tails)
    return noun, {name: f"{form} {tail}".strip() for name, form in zip(("base", "finite", "ing"), verb, strict=True)}


def sentences(subject: Event | Subject, rng: np.random.Generator, count: int) -> list[str]:
    """`count` different sentences that describe it (there are hundreds for each event)."""
    first, *after = (subject,) if isinstance(subject, Event) else subject
    found: dict[str, None] = {}
    while len(found) < count:
        found[sequence_sentence(first, after[0], rng) if after else sentence(first, rng)] = None
    return list(found)


def empty_sentence(rng: np.random.Generator) -> str:
    """A sentence that describes a scene without objects."""
    return pick(rng, EMPTY_SENTENCES)


def tokens(text: str) -> list[str]:
    """Words and punctuation marks of a sentence, lower case."""
    return re.findall(r"[a-z]+|[?.,]", text.lower())


def vocabulary() -> list[str]:
    """Every token that the grammar can produce, sorted; special tokens are the tokenizer's own."""
    patterns = (*_NOUNS, *_ADJECTIVE_NOUNS, *_TEMPLATES)
    texts = [re.sub(r"\{.*?\}", " ", pattern) for pattern in patterns]
    texts += ["a", "an", ".", ",", *_ADJECTIVES.values(), *EMPTY_SENTENCES]
    texts += [word for words in (*COLOURS.values(), *SHAPES.values()) for word in words]
    for rows in ACTIONS.values():
        for verbs, tails in rows:
            texts += [form for verb in verbs for form in verb] + list(tails)
    return sorted({token for text in texts for token in tokens(text)})


def pick(rng: np.random.Generator, items: Sequence[T]) -> T:
    """One item, drawn evenly."""
    return items[int(rng.integers(len(items)))]


@functools.cache
def _by_held_out() -> tuple[list[Event], list[Event]]:
    """(the combinations that training shows, the held-out ones)."""
    events = all_events()
    return [event for event in events if not is_held_out(event)], [event for event in events if is_held_out(event)]
