"""Build questions.jsonl: short general questions whose answers are short and can be checked.

    python data/general/build.py            # write the file beside this script
    python data/general/build.py --check    # exit 1 unless the file here is what the tables below make

The tables were written for this project. What the marks in an answer mean is said in README.md.
"""

import argparse
import json
from pathlib import Path

FILE = Path(__file__).resolve().parent / "questions.jsonl"

CAPITALS = {
    "France": "Paris", "Japan": "Tokyo", "Germany": "Berlin", "Italy": "Rome|Roma", "Spain": "Madrid",
    "Russia": "Moscow", "Egypt": "Cairo", "Greece": "Athens", "Canada": "Ottawa", "Australia": "Canberra",
    "Peru": "Lima", "Kenya": "Nairobi",
}  # fmt: skip
ARITHMETIC = {
    "2 + 3": "5|five", "4 + 4": "8|eight", "10 - 3": "7|seven", "5 + 6": "11|eleven", "9 - 5": "4|four",
    "3 x 3": "9|nine", "7 x 6": "42|forty-two", "20 / 4": "5|five", "15 + 17": "32|thirty-two",
    "100 - 36": "64|sixty-four", "8 x 9": "72|seventy-two", "63 / 9": "7|seven",
}  # fmt: skip
OPPOSITES = {
    "hot": "cold|cool", "up": "down", "big": "small|little|tiny", "happy": "sad|unhappy", "day": "night",
    "fast": "slow", "open": "closed|close|shut", "rich": "poor", "strong": "weak", "empty": "full",
    "early": "late", "love": "hate|hatred",
}  # fmt: skip
PLURALS = {
    "cat": "cats", "box": "boxes", "city": "cities", "child": "children", "mouse": "mice", "foot": "feet",
    "leaf": "leaves", "woman": "women", "tooth": "teeth", "knife": "knives", "goose": "geese", "tomato": "tomatoes",
}  # fmt: skip
CALENDAR = {
    "Which day comes right after Monday?": "Tuesday",
    "Which day comes right after Friday?": "Saturday",
    "Which day comes right before Thursday?": "Wednesday",
    "Which day comes right before Sunday?": "Saturday",
    "Which month comes right after March?": "April",
    "Which month comes right after November?": "December",
    "Which month comes right before August?": "July",
    "Which is the first month of the year?": "January",
    "Which is the last month of the year?": "December",
    "How many days are there in a week?": "7|seven",
    "How many months are there in a year?": "12|twelve",
    "How many hours are there in a day?": "24|twenty-four",
}
ANIMALS = {
    "What is a baby dog called?": "puppy|pup|puppies",
    "What is a baby cat called?": "kitten|kitty|kittens",
    "What is a baby sheep called?": "lamb|lambs",
    "What is a baby cow called?": "calf|calves",
    "Which animal says moo?": "cow|cows|bull|cattle",
    "Which animal barks?": "dog|dogs",
    "Which insect makes honey?": "bee|bees|honeybee|honeybees",
    "How many legs does a spider have?": "8|eight",
    "How many legs does a horse have?": "4|four",
    "Which animal has a very long trunk?": "elephant|elephants",
    "Which animal has a very long neck and lives in Africa?": "giraffe|giraffes",
    "Which black and white animal eats bamboo?": "panda|pandas",
}
ELEMENTS = {  # asked for the name: symbols such as He and I are words of their own
    "H": "hydrogen", "O": "oxygen", "C": "carbon", "N": "nitrogen", "Fe": "iron", "He": "helium", "Ca": "calcium",
    "Cu": "copper", "Na": "sodium", "Ag": "silver",
}  # fmt: skip
SYMBOLS = {"gold": "Au", "zinc": "Zn"}
TRANSLATIONS = {
    ("thank you", "French"): "merci", ("hello", "Spanish"): "hola", ("good morning", "French"): "bonjour",
    ("yes", "German"): "ja", ("water", "Spanish"): "agua", ("house", "Spanish"): "casa", ("dog", "French"): "chien",
    ("cat", "Spanish"): "gato|gata", ("book", "French"): "livre", ("bread", "German"): "Brot",
    ("friend", "Spanish"): "amigo|amiga", ("milk", "Italian"): "latte",
}  # fmt: skip
SENTENCES = {
    "On a clear day, the sky is": "blue",
    "Fresh snow is cold and": "white|wet|soft|fluffy|crisp",
    "When it rains, I take an": "umbrella",
    "Grass is usually the colour": "green",
    "The sun rises in the": "east|morning",
    "We smell with our": "nose|noses",
    "We hear with our": "ears|ear",
    "At night we can see the moon and the": "stars|star",
    "Fish live in the": "water|sea|ocean|seas|oceans|rivers|river",
    "When water gets very cold it turns into": "ice",
    "I cut the paper with a pair of": "scissors",
    "To open the locked door you need a": "key",
}
INSTRUCTIONS = {
    "Write the word table in capital letters. Write nothing else.": "=TABLE",
    "Write the word river in capital letters. Write nothing else.": "=RIVER",
    "Write the word LEMON in small letters. Write nothing else.": "=lemon",
    "Answer with the one word yes.": "=yes|Yes|YES",
    "Answer with the one word no.": "=no|No|NO",
    "Repeat this word and write nothing else: window": "=window|Window",
    "Repeat this sentence and write nothing else: The cat sleeps.": "=The cat sleeps",
    "Write the number seven as a digit. Write nothing else.": "=7",
    "Write the number 3 as a word. Write nothing else.": "=three|Three|THREE",
    "Write the first letter of the word banana. Write nothing else.": "=b|B",
    "Write the letters a, b and c without spaces or commas. Write nothing else.": "=abc|ABC",
    "Write the word dog twice, with one space between. Write nothing else.": "=dog dog|Dog dog|Dog Dog|DOG DOG",
}


def main() -> int:
    """Write the file, or with --check say whether the one beside this script is the same."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    if not parser.parse_args().check:
        FILE.write_bytes(content())
        return 0
    same = FILE.is_file() and FILE.read_bytes() == content()
    print("the file is what this script makes" if same else "the file differs from what this script makes")
    return 0 if same else 1


def content() -> bytes:
    """The whole file: a line a question, the kinds taking turns, so that its first N rows are a fair sample."""
    kinds = questions()
    longest = max(len(rows) for rows in kinds.values())
    lines = []
    for number in range(longest):
        for kind, rows in kinds.items():
            if number < len(rows):
                prompt, answer = rows[number]
                row = {"id": f"{kind}-{number + 1:02}", "kind": kind, "prompt": prompt, "answer": answer}
                lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    return "".join(lines).encode()


def questions() -> dict[str, list[tuple[str, str]]]:
    """(prompt, answer) of every question, by kind."""
    elements = [(f"Which element has the chemical symbol {s}?", name) for s, name in ELEMENTS.items()]
    elements += [(f"What is the chemical symbol for {name}?", symbol) for name, symbol in SYMBOLS.items()]
    return {
        "capital": [(f"What is the capital of {country}?", city) for country, city in CAPITALS.items()],
        "arithmetic": [(f"What is {sum_}?", result) for sum_, result in ARITHMETIC.items()],
        "opposite": [(f"What is the opposite of {word}?", other) for word, other in OPPOSITES.items()],
        "plural": [(f"What is the plural of {word}?", many) for word, many in PLURALS.items()],
        "calendar": list(CALENDAR.items()),
        "animal": list(ANIMALS.items()),
        "element": elements,
        "translation": [(f'How do you say "{w}" in {tongue}?', said) for (w, tongue), said in TRANSLATIONS.items()],
        "sentence": [(f"Complete the sentence with one word: {start}", end) for start, end in SENTENCES.items()],
        "instruction": list(INSTRUCTIONS.items()),
    }


if __name__ == "__main__":
    raise SystemExit(main())
