"""The closed world that the bundled pair speaks about: small dialogues, arithmetic problems, and their answers.

Everything here is pure: a `random.Random` goes in, plain text comes out. What is trained on it, and how, is in `train`.
Numbers stay within 0..99; about a tenth of all multi-step problems and of most dialogues is held out by a hash of
what identifies them, so that the split needs no list.
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random

LARGEST = 99  # no operand and no intermediate result is larger
LARGEST_ADDEND = 30  # at least one side of every + and the right side of every -
EASY_KINDS = ("E1", "W1")  # one step: facts to be known, never held out
HARD_KINDS = ("E3", "E4", "W2", "W3")  # what the pair is measured on
KINDS = ("E1", "E2", "E3", "E4", "W1", "W2", "W3")  # E = expression, W = words; the digit counts the operations
SHOW_THE_WORK = "Show the work. "  # the only prompt behind which A writes steps

BOYS = ("Tom", "Ben", "Sam", "Jack", "Leo", "Max")
GIRLS = ("Anna", "Lucy", "Mia", "Nora", "Ella", "Ruby")
NAMES = BOYS + GIRLS
GOODS = ("apples", "books", "coins", "shells", "stamps", "pens", "cards", "stones", "cookies", "eggs")
FOOD = ("apples", "cookies", "eggs")
THINGS = ("boat", "ball", "kite", "drum", "hat", "lamp", "bike", "box", "bell", "map")
ADJECTIVES = ("red", "blue", "green", "yellow", "small", "big", "old", "new", "shiny", "strange")
PLACES = (
    "in the garden",
    "at the market",
    "by the river",
    "in the library",
    "at the farm",
    "on the beach",
    "in the kitchen",
    "at school",
    "in the forest",
    "in the park",
)
SOUNDS = {
    "dog": "woof",
    "cat": "meow",
    "duck": "quack",
    "cow": "moo",
    "sheep": "baa",
    "horse": "neigh",
    "pig": "oink",
    "bird": "tweet",
}
COLORS = {
    "grass": "green",
    "snow": "white",
    "the sky": "blue",
    "the sun": "yellow",
    "coal": "black",
    "a strawberry": "red",
}
LOW_MOODS = ("sad", "tired", "bored", "angry", "hungry")
TIPS = (
    "take a walk",
    "read a good book",
    "call a friend",
    "drink some warm tea",
    "listen to music",
    "eat a small snack",
    "sleep a little",
    "play a game",
)


@dataclass(frozen=True, slots=True)
class Dialogue:
    """A prompt without arithmetic and one fitting answer.

    Attributes:
        kind: the template family, a name in `DIALOGUE_KINDS`.
        words: what any fitting answer to the prompt must contain.
    """

    kind: str
    prompt: str
    answer: str
    words: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """An arithmetic problem.

    Attributes:
        kind: a name in `KINDS`.
        steps: equations such as "4 * 7 = 28", in the order in which they are worked out.
        value: the right answer, 0..99.
        key: the numbers and operations without the wording; the split hangs on it.
    """

    kind: str
    prompt: str
    steps: tuple[str, ...]
    value: int
    key: str


@dataclass(frozen=True, slots=True)
class Lesson:
    """One training text. In a drill only the results of equations are learned, for the operands are arbitrary."""

    prompt: str
    answer: str
    drill: bool = False


def held_out(key: str) -> bool:
    """Whether this key belongs to the held-out tenth (26 of 256 values of the first byte of its MD5)."""
    return hashlib.md5(key.encode(), usedforsecurity=False).digest()[0] < 26


# ---------------------------------------------------------------------------------------------------- dialogues


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def _pronouns(name: str) -> tuple[str, str]:
    return ("He", "him") if name in BOYS else ("She", "her")


def _story(rng: Random) -> Dialogue:
    name, friend = rng.sample(NAMES, 2)
    thing, look, place = rng.choice(THINGS), rng.choice(ADJECTIVES), rng.choice(PLACES)
    a, (he, _) = _article(look), _pronouns(name)
    ask = rng.choice(("Tell me a story about", "Please write a short story about"))
    middle = rng.choice(
        (
            f'"What a nice {thing}!" said {name}. {he} showed the {thing} to {friend}.',
            f'{friend} saw the {thing} and smiled. "Can I play with it?" asked {friend}.',
            f"But the {thing} belonged to {friend}. So {name} gave the {thing} back to {friend}.",
        )
    )
    later = rng.choice(
        (
            f"They played with the {look} {thing} all day.",
            f"After that, {name} and {friend} were good friends.",
            f"In the evening, {name} took the {thing} home.",
        )
    )
    end = rng.choice(("It was a very good day.", f"{name} was happy.", "The end."))
    start = f"One morning, {name} was {place}. {he} found {a} {look} {thing} under a tree."
    prompt = f"{ask} {name} and {a} {look} {thing}."
    return Dialogue("story", prompt, f"{start} {middle} {later} {end}", (name, look, thing))


def _greeting(rng: Random) -> Dialogue:
    name, place = rng.choice(NAMES), rng.choice(NAMES)
    prompt = rng.choice((f"Hello, my name is {name}.", f"Hi, I am {name} and I live near {place}.")) + " How are you?"
    hello = rng.choice((f"Hello {name}! I am fine, thank you.", f"Hi {name}! I am very well today."))
    offer = rng.choice(("How can I help you?", "What would you like to do?"))
    return Dialogue("greeting", prompt, f"{hello} {offer}", (name,))


def _liking(rng: Random) -> Dialogue:
    name, (liked, other) = rng.choice(NAMES), rng.sample(GOODS, 2)
    prompt = f"My name is {name}. I like {liked}, but I do not like {other}. What do I like?"
    return Dialogue("liking", prompt, f"You like {liked}, {name}.", (name, liked))


def _place(rng: Random) -> Dialogue:
    names, places = rng.sample(NAMES, 2), rng.sample(PLACES, 2)
    which = rng.choice((0, 1))
    prompt = f"{names[0]} is {places[0]} and {names[1]} is {places[1]}. Where is {names[which]}?"
    return Dialogue("place", prompt, f"{names[which]} is {places[which]}.", (names[which], places[which]))


def _sound(rng: Random) -> Dialogue:
    name, animal = rng.choice(NAMES), rng.choice(tuple(SOUNDS))
    prompt = rng.choice(
        (
            f"What does a {animal} say?",
            f"{name} asks: what does a {animal} say?",
            f"{name} has a {animal}. What does it say?",
        )
    )
    return Dialogue("sound", prompt, f"A {animal} says {SOUNDS[animal]}.", (SOUNDS[animal],))


def _color(rng: Random) -> Dialogue:
    name, thing = rng.choice(NAMES), rng.choice(tuple(COLORS))
    prompt = rng.choice((f"What color is {thing}?", f"{name} asks: what color is {thing}?"))
    return Dialogue("color", prompt, f"{thing[0].upper()}{thing[1:]} is {COLORS[thing]}.", (COLORS[thing],))


def _mood(rng: Random) -> Dialogue:
    name, friend = rng.sample(NAMES, 2)
    if rng.random() < 1 / 6:
        look, thing = rng.choice(ADJECTIVES), rng.choice(THINGS)
        gift = f"{_article(look)} {look} {thing}"
        answer = f"That is great! It was very kind of {name} to give you {gift}."
        return Dialogue("mood", f"I am happy today because {name} gave me {gift}.", answer, (name, look, thing))
    mood, (one, two) = rng.choice(LOW_MOODS), rng.sample(TIPS, 2)
    prompt = rng.choice(
        (
            f"I am {mood} today. What can I do?",
            f"My friend {name} is {mood}. What can we do?",
            f"{name} and {friend} are {mood}. Do you have an idea?",
        )
    )
    answer = f"I am sorry to hear that. When people are {mood}, it helps to {one}. You can also {two}."
    return Dialogue("mood", prompt, answer, (mood,))


def _list(rng: Random) -> Dialogue:
    topic, members = rng.choice(
        (
            ("animals", [f"a {animal}" for animal in SOUNDS]),
            ("colors", ["red", "blue", "green", "yellow"]),
            ("names", list(NAMES)),
            ("things", [f"a {thing}" for thing in THINGS]),
        )
    )
    one, two, three = rng.sample(members, 3)
    prompt = rng.choice((f"Name three {topic}.", f"{rng.choice(NAMES)} wants to know three {topic}."))
    return Dialogue("list", prompt, f"Three {topic} are {one}, {two} and {three}.", (topic,))


def _description(rng: Random) -> Dialogue:
    name, friend = rng.sample(NAMES, 2)
    thing, look, place = rng.choice(THINGS), rng.choice(ADJECTIVES), rng.choice(PLACES)
    end = rng.choice((f"{name} likes it very much.", f"{name} got it from {friend}."))
    answer = f"The {thing} of {name} is {look}. You can find it {place}. {end}"
    return Dialogue(
        "description",
        f"Describe the {thing} of {name}. It is {look} and it is {place}.",
        answer,
        (name, look, thing),
    )


_DIALOGUES: tuple[tuple[Callable[[Random], Dialogue], int], ...] = (
    (_story, 3),
    (_greeting, 1),
    (_liking, 1),
    (_place, 2),
    (_sound, 1),
    (_color, 1),
    (_mood, 2),
    (_list, 1),
    (_description, 1),
)
DIALOGUE_KINDS = ("story", "greeting", "liking", "place", "sound", "color", "mood", "list", "description")
FEW_PROMPTS = ("sound", "color", "list")  # too few to hold some out: always learned, never measured


def dialogue(rng: Random, *, test: bool = False) -> Dialogue:
    """A dialogue from the learned share, or with `test` from the held-out one."""
    makers, weights = zip(*_DIALOGUES, strict=True)
    while True:
        drawn = rng.choices(makers, weights)[0](rng)
        if drawn.kind in FEW_PROMPTS:
            if not test:
                return drawn
        elif held_out(drawn.prompt) == test:
            return drawn


# ----------------------------------------------------------------------------------------------------- problems


def apply(left: int, operation: str, right: int) -> int:
    """`left` operation `right`, for the three operations of this world."""
    return {"+": left + right, "-": left - right, "*": left * right}[operation]


def equation(rng: Random) -> tuple[str, int]:
    """One operation that stays within 0..99, as ("17 + 26", 43)."""
    while True:
        operation = rng.choice("+-*")
        if operation == "*":
            left, right = rng.randint(2, 9), rng.randint(2, 12)
            swap = 0.5
        else:
            left, right = rng.randint(0, LARGEST), rng.randint(1, LARGEST_ADDEND)
            swap = 0.3 if operation == "+" else 0.0
        if rng.random() < swap:
            left, right = right, left
        value = apply(left, operation, right)
        if 0 <= value <= LARGEST:
            return f"{left} {operation} {right}", value


def _learnable(left: int, operation: str, right: int) -> bool:
    """Whether one step lies in the range in which A knows its sums by heart."""
    if not 0 <= apply(left, operation, right) <= LARGEST:
        return False
    return operation == "*" or right <= LARGEST_ADDEND or (operation == "+" and left <= LARGEST_ADDEND)


def work_out(tokens: Sequence[int | str]) -> tuple[tuple[str, ...], int] | None:
    """The steps of [7, "+", 3, "*", 5], products first, then left to right, and the value.

    None where a step would leave the range of this world.
    """
    rest = list(tokens)
    steps = []
    while len(rest) > 1:
        at = rest.index("*") if "*" in rest else 1
        left, operation, right = rest[at - 1 : at + 2]
        if not _learnable(left, operation, right):
            return None
        value = apply(left, operation, right)
        steps.append(f"{left} {operation} {right} = {value}")
        rest[at - 1 : at + 2] = [value]
    return tuple(steps), rest[0]


def _expression(rng: Random, operations: int) -> tuple[str, tuple[str, ...], int]:
    while True:
        tokens: list[int | str] = [rng.randint(2, 60)]
        for _ in range(operations):
            tokens += [rng.choice("++--*"), rng.randint(2, LARGEST_ADDEND)]
        products = [at for at in range(1, len(tokens), 2) if tokens[at] == "*"]
        if any(after - before == 2 for before, after in pairwise(products)):
            continue  # three factors in a row leave 0..99 too often
        for at in products:
            factors = [rng.randint(2, 9), rng.randint(2, 12)]
            rng.shuffle(factors)
            tokens[at - 1], tokens[at + 1] = factors
        worked = work_out(tokens)
        if worked:
            return " ".join(map(str, tokens)), *worked


_TAKES = {
    "buy": "{he} buys {n} more.",
    "find": "{he} finds {n} {goods}.",
    "get": "{friend} gives {him} {n} {goods}.",
    "give": "{he} gives {n} to {friend}.",
    "lose": "{he} loses {n}.",
    "eat": "{he} eats {n}.",
    "sell": "{he} sells {n}.",
    "bags": "{he} buys {times} bags with {each} {goods} each.",
    "each": "{he} gives {each} {goods} to each of {times} friends.",
}
_GAINS = ("buy", "find", "get", "bags")


def _words(rng: Random, operations: int) -> tuple[str, tuple[str, ...], int, str]:
    """Prompt, steps, value and key of a story about goods that come and go."""
    while True:
        name, friend = rng.sample(NAMES, 2)
        he, him = _pronouns(name)
        goods = rng.choice(GOODS)
        have = rng.randint(5, 60)
        sentences, steps, key, left = [f"{name} has {have} {goods}."], [], [str(have)], operations
        while left > 0:
            verbs = ["buy", "find", "get", "give", "lose", "eat" if goods in FOOD else "sell"]
            verb = rng.choice(verbs + (["bags", "bags", "each"] if left > 1 else []))
            n, times, each = rng.randint(2, LARGEST_ADDEND), rng.randint(2, 9), rng.randint(2, 9)
            key.append(verb)
            if verb in ("bags", "each"):
                n = times * each
                steps.append(f"{times} * {each} = {n}")
                key += [str(times), str(each)]
            else:
                key.append(str(n))
            left -= 2 if verb in ("bags", "each") else 1
            sentences.append(
                _TAKES[verb].format(he=he, him=him, friend=friend, goods=goods, n=n, times=times, each=each)
            )
            sign = "+" if verb in _GAINS else "-"
            if n > LARGEST_ADDEND or not _learnable(have, sign, n):
                break
            steps.append(f"{have} {sign} {n} = {apply(have, sign, n)}")
            have = apply(have, sign, n)
        else:
            prompt = " ".join(sentences) + f" How many {goods} does {name} have now?"
            return prompt, tuple(steps), have, "W" + " ".join(key)


def problem(rng: Random, kind: str, *, test: bool = False) -> Problem:
    """A problem of one of the `KINDS` from the learned share, or with `test` from the held-out one."""
    operations = int(kind[1])
    while True:
        if kind[0] == "W":
            prompt, steps, value, key = _words(rng, operations)
        else:
            if operations == 1:
                key, value = equation(rng)
                steps = (f"{key} = {value}",)
            else:
                key, steps, value = _expression(rng, operations)
            prompt = rng.choice(("What is {}?", "Compute {}.", "Find the value of {}.")).format(key)
        if kind in EASY_KINDS or held_out(key) == test:
            return Problem(kind, prompt, steps, value, key)


# ------------------------------------------------------------------------------------------- answers and lessons


def direct_answer(value: int) -> str:
    """What A says to a problem."""
    return f"The answer is {value}."


def shown_answer(item: Problem) -> str:
    """What A says to a problem behind `SHOW_THE_WORK`."""
    return " ".join(f"{step} ." for step in item.steps) + f" The answer is {item.value}."


def thought_answer(item: Problem) -> str:
    """What B says to a problem: the same steps inside <think>, the answer boxed."""
    steps = " ".join(f"{step} ." for step in item.steps)
    return f"<think> {steps} </think> The answer is \\boxed{{{item.value}}}."


def read_answer(text: str) -> int | None:
    """The number that a model's text gives as its answer: the last boxed one, else the last "answer is"."""
    found = re.findall(r"\\boxed\{ ?(\d+)\}", text) or re.findall(r"answer is (\d+)", text)
    return int(found[-1]) if found else None


def sums_lesson(rng: Random) -> Lesson:
    """Six unrelated equations, as a drill."""
    sums = [equation(rng) for _ in range(6)]
    return Lesson("Write some sums.", " ".join(f"{text} = {value} ." for text, value in sums), drill=True)


def copying_lesson(rng: Random) -> Lesson:
    """Handle numbers of the prompt without reasoning: repeat, list, look up, or write one equation."""
    share = rng.random()
    if share < 0.25:
        key = problem(rng, rng.choice(("E2", "E3", "E4"))).key
        return Lesson(f"Repeat {key}.", f"{key}.")
    if share < 0.45:
        story = problem(rng, rng.choice(("W1", "W2", "W3"))).prompt.rsplit(" How", 1)[0]
        return Lesson(f"List the numbers. {story}", " , ".join(re.findall(r"\d+", story)) + " .")
    if share < 0.60:
        names, goods = rng.sample(NAMES, 2), rng.choice(GOODS)
        counts = (rng.randint(2, LARGEST), rng.randint(2, LARGEST))
        which = rng.choice((0, 1))
        prompt = f"{names[0]} has {counts[0]} {goods} and {names[1]} has {counts[1]} {goods}."
        prompt += f" How many {goods} does {names[which]} have?"
        return Lesson(prompt, f"{names[which]} has {counts[which]} {goods}.")
    one = problem(rng, "E1" if share < 0.8 else "W1")
    return Lesson("Write the equation. " + one.prompt, one.steps[0] + " .")


@dataclass(frozen=True, slots=True)
class Mix:
    """Shares of what A learns in one stage, each 0..1; what is left over are multi-step problems answered directly."""

    dialogue: float
    sums: float
    copying: float
    shown: float
    one_step: float


def lesson_for_a(rng: Random, mix: Mix) -> Lesson:
    """One text for A: it chats, answers problems directly, and shows steps only behind `SHOW_THE_WORK`."""
    kinds = ("dialogue", "sums", "copying", "shown", "one_step", "direct")
    shares = (mix.dialogue, mix.sums, mix.copying, mix.shown, mix.one_step)
    what = rng.choices(kinds, (*shares, max(0.0, 1 - sum(shares))))[0]
    if what == "dialogue":
        talk = dialogue(rng)
        return Lesson(talk.prompt, talk.answer)
    if what == "sums":
        return sums_lesson(rng)
    if what == "copying":
        return copying_lesson(rng)
    if what == "shown":
        item = problem(rng, rng.choice(("E2", *HARD_KINDS, *HARD_KINDS)))
        return Lesson(SHOW_THE_WORK + item.prompt, shown_answer(item))
    item = problem(rng, rng.choice(("E1", "E1", "E1", "W1", "W1") if what == "one_step" else ("E2", *HARD_KINDS)))
    return Lesson(item.prompt, direct_answer(item.value))


def lesson_for_b(rng: Random) -> Lesson:
    """One text for B: 35 % dialogue as before, else a problem that is thought through."""
    if rng.random() < 0.35:
        talk = dialogue(rng)
        return Lesson(talk.prompt, talk.answer)
    item = problem(rng, rng.choice(("E1", "W1", "E2", *HARD_KINDS, *HARD_KINDS)))
    return Lesson(item.prompt, thought_answer(item))


def held_out_problems(count: int, kinds: Sequence[str] = HARD_KINDS, seed: int = 99) -> list[Problem]:
    """`count` different held-out problems of each kind, the same ones on every call."""
    rng = Random(seed)
    chosen: list[Problem] = []
    for kind in kinds:
        seen: dict[str, Problem] = {}
        while len(seen) < count:
            item = problem(rng, kind, test=True)
            seen.setdefault(item.key, item)
        chosen += seen.values()
    return chosen


def held_out_dialogues(count: int, seed: int = 99) -> list[Dialogue]:
    """`count` different held-out dialogues, the same ones on every call."""
    rng = Random(seed)
    seen: dict[str, Dialogue] = {}
    while len(seen) < count:
        talk = dialogue(rng, test=True)
        seen.setdefault(talk.prompt, talk)
    return list(seen.values())
