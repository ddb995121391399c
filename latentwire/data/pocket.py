"""Procedural question answering in the shape of SQuAD: the pocket corpus.

A passage states facts about a few invented people, one sentence per fact, in random order. Every
fact has one question. Values may be shared between people, so that an answer needs the name and
the relation together. The same seed gives the same bytes.

Names are one word made of an opening and a closing syllable. `is_held_out_name` keeps a fixed
part of all names away from every training split; the test split uses them to measure what
happens on names that nobody has seen.
"""

import itertools
import random
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

MAX_PEOPLE = 4
FULL_LENGTH_FACTS = 14
HELD_OUT_NAME_SHARE = 0.2


@dataclass(frozen=True)
class Relation:
    """One kind of fact: its wordings, the questions that ask for it and its possible values."""

    name: str
    statements: tuple[str, ...]
    questions: tuple[str, ...]
    values: tuple[str, ...]


@dataclass(frozen=True)
class Fact:
    person: str
    relation: Relation
    value: str
    statement: str
    question: str


@dataclass(frozen=True)
class Passage:
    people: tuple[str, ...]
    facts: tuple[Fact, ...]

    @property
    def context(self) -> str:
        return " ".join(fact.statement for fact in self.facts)

    def restated(self, num_words: float) -> tuple["Fact", ...]:
        """The first facts, as many as so many words can state, but one at least."""
        ends = itertools.accumulate(len(fact.statement.split()) for fact in self.facts)
        return self.facts[: max(1, sum(end <= num_words for end in ends))]


def _compose(first: str, second: str, separator: str = "") -> tuple[str, ...]:
    return tuple(separator.join(pair) for pair in product(first.split(), second.split()))


RELATIONS: tuple[Relation, ...] = (
    Relation(
        "birthplace",
        ("{name} was born in {value}.", "The birthplace of {name} is {value}."),
        ("Where was {name} born?", "What is the birthplace of {name}?"),
        _compose(
            "Bran Holm Ash Wind Stone Mill North Red King Fair Oak Black Elm Lang Thorn Wex",
            "ford ton bury wick dale mouth haven stead field bridge port gate ham",
        ),
    ),
    Relation(
        "employer",
        ("{name} works for {value}.", "The employer of {name} is {value}."),
        ("Who does {name} work for?", "Which company employs {name}?"),
        _compose(
            "Amber Cobalt Granite Silver Summit Harbor Willow Falcon Copper Atlas Beacon Crystal "
            "Meadow Orbit Pioneer",
            "Motors Foods Bank Mining Textiles Press Shipping Glass Airways Timber Paper Steel "
            "Energy Toys",
            " ",
        ),
    ),
    Relation(
        "arrival",
        ("{name} arrived in {value}.", "The year {name} came was {value}."),
        ("When did {name} arrive?", "In which year did {name} come?"),
        tuple(str(year) for year in range(1790, 2000)),
    ),
    Relation(
        "profession",
        ("{name} works as a {value}.", "By trade {name} is a {value}."),
        ("What is the job of {name}?", "What does {name} do for a living?"),
        tuple(
            "baker carpenter doctor teacher lawyer painter sailor farmer tailor "
            "butcher pilot nurse plumber barber writer singer dancer judge miner "
            "potter printer jeweller fisher hunter gardener porter waiter banker "
            "chemist driver builder soldier".split()
        ),
    ),
    Relation(
        "pet",
        ("{name} keeps a {value}.", "The pet of {name} is a {value}."),
        ("What pet does {name} keep?", "Which animal lives with {name}?"),
        tuple(
            "cat dog parrot rabbit goat turtle hamster lizard pony ferret snake canary goose duck "
            "mouse pigeon".split()
        ),
    ),
    Relation(
        "colour",
        ("{name} likes to wear {value}.", "The colour of {name} is {value}."),
        ("What is the colour of {name}?", "Which colour does {name} wear?"),
        tuple(
            "red blue green yellow purple brown black white pink grey crimson violet teal olive "
            "beige indigo".split()
        ),
    ),
    Relation(
        "instrument",
        ("{name} plays the {value}.", "The instrument of {name} is the {value}."),
        ("What instrument does {name} play?", "What music does {name} make?"),
        tuple(
            "violin flute harp drum guitar trumpet cello piano banjo clarinet tuba lute horn "
            "fiddle bassoon mandolin".split()
        ),
    ),
    Relation(
        "dish",
        ("{name} likes to cook {value}.", "The dish of {name} is {value}."),
        ("What does {name} like to cook?", "What is the dish of {name}?"),
        _compose("lemon onion pepper ginger garlic honey", "soup pie stew rice", " "),
    ),
)

_OPENINGS = (
    "Ba Be Bo Bri Ca Ce Co Cla Da De Do Dre Fa Fe Fi Flo Ga Ge Go Gri Ha He Hi Hu "
    "Ja Je Jo Ju Ka Ke Ki Kra La Le Li Lo Ma Me Mi Mu Na Ne Ni No Pa Pe Pi Pro Ra "
    "Re Ri Ro Sa Se Si Sto Ta Te Ti Tru Va Ve Vi Wa Wi Ya Yo Za Ze Zo"
)
_CLOSINGS = (
    "bel ben bin dan del dor fan fin gan gil gor kas kel kim lan len lia lor man "
    "mer mir mon nar nel nia nor pas pel ran ren ria ric rod san sel sia son tan "
    "tel tha tin tor van vel vin vor wen wyn zan zel"
)


def is_held_out_name(name: str) -> bool:
    """Whether a name is reserved for the test split; a fixed function of the name alone."""
    return zlib.crc32(name.encode()) % 1000 < 1000 * HELD_OUT_NAME_SHARE


_ALL_NAMES = _compose(_OPENINGS, _CLOSINGS)
NAMES = tuple(name for name in _ALL_NAMES if not is_held_out_name(name))
HELD_OUT_NAMES = tuple(name for name in _ALL_NAMES if is_held_out_name(name))


def make_passage(
    rng: random.Random,
    num_people: int,
    num_facts: int,
    num_relations: int = len(RELATIONS),
    names: Sequence[str] = NAMES,
) -> Passage:
    """Draws one passage.

    Args:
        rng: the only source of randomness.
        num_people: people in the passage, each with at least one fact.
        num_facts: sentences in the passage, at least `num_people` and at most
            `num_people * num_relations`.
        num_relations: how many of the relations may occur. The fewer, the more an answer hangs on
            the name.
        names: whom the people may be called.

    Raises:
        ValueError: if the counts cannot be met.
    """
    if not 1 <= num_people <= num_facts <= num_people * num_relations:
        raise ValueError(
            f"{num_people} people and {num_relations} relations make {num_people} to "
            f"{num_people * num_relations} facts, not {num_facts}"
        )
    people = rng.sample(names, num_people)
    pairs = list(product(people, rng.sample(RELATIONS, num_relations)))
    rng.shuffle(pairs)
    # One fact for each person first, so that nobody is only a name.
    first = {person: next(pair for pair in pairs if pair[0] == person) for person in people}
    rest = [pair for pair in pairs if pair not in first.values()]
    chosen = [*first.values(), *rest[: num_facts - num_people]]
    rng.shuffle(chosen)
    facts = []
    for person, relation in chosen:
        value = rng.choice(relation.values)
        facts.append(
            Fact(
                person,
                relation,
                value,
                rng.choice(relation.statements).format(name=person, value=value),
                rng.choice(relation.questions).format(name=person),
            )
        )
    return Passage(tuple(people), tuple(facts))


def draw_shape(rng: random.Random) -> tuple[int, int, int]:
    """Draws (people, facts, relations) of a training passage.

    Lengths are mixed, 2 to 14 facts about 1 to 4 people, and so is the number of relations:
    passages of full length alone, or of all relations alone, are learned far more slowly.
    """
    num_people = rng.randint(1, MAX_PEOPLE)
    num_relations = rng.randint(2 if num_people == 1 else 1, len(RELATIONS))
    most = min(FULL_LENGTH_FACTS, num_people * num_relations)
    return num_people, rng.randint(max(2, num_people), most), num_relations


def mixed_passages(seed: str) -> Iterator[Passage]:
    """An endless stream of training passages of mixed shape, a pure function of the seed."""
    rng = random.Random(seed)
    while True:
        yield make_passage(rng, *draw_shape(rng))


def full_length_passages(seed: str, names: Sequence[str] = NAMES) -> Iterator[Passage]:
    """An endless stream of passages of 4 people and 14 facts, a pure function of the seed."""
    rng = random.Random(seed)
    while True:
        yield make_passage(rng, MAX_PEOPLE, FULL_LENGTH_FACTS, names=names)
