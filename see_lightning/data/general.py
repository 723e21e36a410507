"""Instructions of all kinds, written here and needing no file: what no expert should take for its own.

An expert that only ever saw its own task and a few others has nothing to tell it that there is more in the world. A
handful of these, learned as refusals, does.
"""

import random

from see_lightning.data.example import DataError, Example

GENERAL = "general"  # the task that such examples are said to be of

# Instructions, each with the kind of input it asks for; None asks for none.
_INSTRUCTIONS: list[tuple[str, str | None]] = [
    ("What is the main idea of this paragraph? Answer in one sentence.", "text"),
    ("Rewrite the following text so that a child of ten understands it.", "text"),
    ("List the nouns in this passage, separated by commas.", "text"),
    ("Count the words of the text below and give only the number.", "text"),
    ("Decide whether the statement follows from the passage. Answer yes, no or unknown.", "pair"),
    ("Continue this story with two more sentences.", "text"),
    ("Correct spelling and grammar in the text that follows.", "text"),
    ("Name the tone of the message: formal, friendly, angry or neutral.", "text"),
    ("Turn these notes into a polite e-mail.", "text"),
    ("Give the text a title of at most six words.", "text"),
    ("Translate the sentence into German.", "sentence"),
    ("Translate this sentence to French.", "sentence"),
    ("Say the same in other words.", "sentence"),
    ("Which word of the sentence is the verb?", "sentence"),
    ("Replace the blank with the most fitting word.", "blank"),
    ("Is the sentence below grammatical? Answer yes or no.", "sentence"),
    ("Put the sentence into the past tense.", "sentence"),
    ("Write the opposite of what is said here.", "sentence"),
    ("Pick the odd one out and say why.", "words"),
    ("Sort these words by the alphabet.", "words"),
    ("Write a sentence that uses all of these words.", "words"),
    ("Which category do these words belong to?", "words"),
    ("Make a rhyme with one of the words given.", "words"),
    ("Solve the problem and give the number only.", "sum"),
    ("Work the following out step by step.", "sum"),
    ("Is the result of this calculation even or odd?", "sum"),
    ("Write a Python function for the task described.", "code"),
    ("Explain what this program does.", "code"),
    ("Find the mistake in the code below.", "code"),
    ("Name three advantages and three disadvantages of", "topic"),
    ("Write a short poem about", "topic"),
    ("Explain to a beginner how it works:", "topic"),
    ("Give me five questions for a quiz about", "topic"),
    ("Plan a weekend around this theme:", "topic"),
    ("Who would be interested in the following subject, and why?", "topic"),
    ("Choose the right answer. Reply with its letter.", "choice"),
    ("Read the question and pick option A, B or C.", "choice"),
    ("Answer the question in one or two words.", "question"),
    ("What do you need to know in order to answer this question?", "question"),
    ("Reply to the customer.", "dialogue"),
    ("What will the speaker probably say next?", "dialogue"),
    ("Sum up what the two people agreed on.", "dialogue"),
    ("Tell me a joke.", None),
    ("Write a recipe for four people with potatoes and leeks.", None),
    ("How do I ask my landlord for a new heating?", None),
    ("Suggest a name for a small bakery.", None),
    ("What should I pack for a week by the sea?", None),
]

_PEOPLE = (
    "Maya",
    "Mr. Okafor",
    "the night nurse",
    "a retired sailor",
    "our neighbour",
    "Lena",
    "the bus driver",
    "Tom",
)
_THINGS = (
    "a broken umbrella", "the old radio", "a letter from Lisbon", "two baskets of plums", "the spare key",
    "a map of the valley", "her grandfather's watch", "a blue bicycle",
)  # fmt: skip
_PLACES = (
    "behind the station",
    "in the library",
    "on the ferry",
    "at the market",
    "near the lighthouse",
    "in the attic",
)
_EVENTS = (
    "before the rain began", "while everyone slept", "after the last guest had left", "on the first day of spring",
    "because nobody had asked", "although it was forbidden",
)  # fmt: skip
_VERBS = ("found", "sold", "hid", "repaired", "forgot", "photographed")
_TOPICS = (
    "bees in the city", "learning to swim as an adult", "solar cells", "chess openings", "the history of tea",
    "volcanoes", "working from home", "night trains", "compost", "medieval castles", "running shoes", "the moon",
    "public libraries", "sourdough bread", "electric cars", "whales", "street music", "school uniforms",
)  # fmt: skip
_WORDS = (
    "river", "lamp", "tiger", "violin", "pepper", "window", "cloud", "hammer", "island", "pencil", "carrot", "rocket",
    "mirror", "forest", "button", "engine", "feather", "bridge", "candle", "planet",
)  # fmt: skip
_CODE = (
    "def f(n):\n    return n if n < 2 else f(n - 1) + f(n - 2)",
    "for line in open('notes.txt'):\n    print(line.upper())",
    "total = 0\nfor i in range(10):\n    total =+ i\nprint(total)",
    "SELECT name FROM guests WHERE age > 30 ORDER BY name;",
    "Given a list of numbers, return the two largest ones.",
    "Read a file and count how often each word occurs.",
)


ROUNDS = 6  # inputs that each instruction comes with at most


def general_examples(number: int, draw: int, *, with_input: bool = False) -> list[Example]:
    """Different instructions, each with an input of its own where it asks for one.

    Args:
        number: how many.
        draw: seed of the choice.
        with_input: whether to leave out those that ask for none.

    Raises:
        DataError: there are not so many.

    >>> print(general_examples(2, draw=4)[1].prompt)
    Sort these words by the alphabet.
    <BLANKLINE>
    pencil, island, lamp, tiger, bridge
    """
    order = random.Random(draw)
    prompts: dict[str, None] = {}
    for turn in range(ROUNDS):
        for instruction, kind in order.sample(_INSTRUCTIONS, len(_INSTRUCTIONS)):
            if kind:
                size = len(prompts)
                while len(prompts) == size:
                    prompts[f"{instruction}\n\n{_input(kind, order)}"] = None
            elif turn == 0 and not with_input:
                prompts[instruction] = None
    if number > len(prompts):
        raise DataError(f"{number} general instructions were asked for, but there are {len(prompts)}.")
    return [
        Example(id=f"{GENERAL}-{place}", prompt=prompt, target="none", task=GENERAL)
        for place, prompt in enumerate(list(prompts)[:number])
    ]


def _input(kind: str, order: random.Random) -> str:
    """Something for an instruction to work on."""
    pick = order.choice
    words = order.sample(_WORDS, 5)
    first, second = order.randint(3, 99), order.randint(2, 40)
    match kind:
        case "text":
            return " ".join(_sentence(order) for _ in range(order.randint(3, 5)))
        case "pair":
            return f"Passage: {_sentence(order)} {_sentence(order)}\nStatement: {_sentence(order)}"
        case "sentence":
            return _sentence(order)
        case "blank":
            whole = _sentence(order).split(" ")
            whole[order.randrange(len(whole))] = "____"
            return " ".join(whole)
        case "words":
            return ", ".join(words)
        case "sum":
            return pick(
                (
                    f"{first} x {second} - {pick(range(1, 9))}",
                    f"A box holds {first} {words[0]}s. {pick(_PEOPLE)} has {second} boxes. How many are there in all?",
                    f"{pick(_PEOPLE)} had {first + second} coins and gave away {second}. How many are left?",
                )
            )
        case "code":
            return f"# {words[0]}_{words[1]}\n{pick(_CODE)}"
        case "topic":
            return f"{pick(_TOPICS)} and {pick(_TOPICS)}"
        case "choice":
            return f"Which of these is a {words[0]}?\nA) {words[1]}\nB) {words[0]}\nC) {words[2]}"
        case "question":
            return f"Where was {pick(_THINGS)} when {pick(_PEOPLE)} came?\n\n{_sentence(order)}"
        case _:
            return f"A: {_sentence(order)}\nB: Really? I thought it was {pick(_PEOPLE)}.\nA: No, {pick(_PLACES)}!"


def _sentence(order: random.Random) -> str:
    pick = order.choice
    who = pick(_PEOPLE)
    return f"{who[0].upper()}{who[1:]} {pick(_VERBS)} {pick(_THINGS)} {pick(_PLACES)} {pick(_EVENTS)}."
