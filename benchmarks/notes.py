"""Clinical-like notes made from templates, and labelled words of a few of them: the text of docs/tutorial.md.

python benchmarks/notes.py --out notes

Writes OUT/text/*.txt, 4,000 notes without labels; OUT/ner/train.conll, dev.conll and test.conll, the sentences of 60
other notes each, a word and its IOB2 label on each line (DOSE, DRUG, PERSON, SYMPTOM); and OUT/new.jsonl, the sentences
of 60 more notes as text and as `tokens`, a list of words, without labels. Drugs and persons are invented, their names
made of syllables: no patient, drug or note is real, and nothing in them is medical advice. Training notes have one half
of the drugs and of the names, dev, test and new notes the other one; of other words they have half and all. The notes
without labels have everything. No labelled sentence comes twice. The same options write the same bytes.
"""

import dataclasses
import itertools
import json
import random
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from sctd_jax.arguments import CommandParser, local_path, number

WORD = re.compile(r"\w+(?:[./'-]\w+)*|[^\w\s]")  # 2.5 and follow-up are words, a full stop is one of its own


def make_names(rng: random.Random, used: set[str], count: int, endings: str) -> list[str]:
    """Invented names of three or four syllables; no two of them begin with the same four letters."""
    found: list[str] = []
    onsets = ("b", "c", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z", "br", "dr", "gl", "tr")
    while len(found) < count:
        syllables = [rng.choice(onsets) + rng.choice("aeiou") for _ in range(rng.choice((1, 2)))]
        name = "".join(syllables) + rng.choice(onsets[:15]) + rng.choice(endings.split())
        if name[:4] not in used:
            used.add(name[:4])
            found.append(name)
    return found


_RNG, _USED = random.Random(20), set[str]()
# The first half is that of the training notes, and no drug of the second one ends as they do.
DRUGS = make_names(_RNG, _USED, 80, "axil etan ovor umet exun")
DRUGS += make_names(_RNG, _USED, 80, "orat isel andu epro ibum")
GIVEN = [name.capitalize() for name in make_names(_RNG, _USED, 120, "eli oun ira ash emi uro")]
FAMILY = [name.capitalize() for name in make_names(_RNG, _USED, 200, "ovek andri urst elmo izan orum")]
WARDS = ("Linden", "Harbour", "Maple", "North", "Garden", "Bridge", "Juniper", "Hill", "Lake", "Tower", "Orchard")
UNITS = {
    "mg": (5, 10, 20, 25, 40, 50, 100, 250, 500), "mcg": (25, 50, 75, 100, 125), "g": (1, 2), "ml": (2.5, 5, 10),
    "tablets": (2, 3), "drops": (5, 10, 20), "units": (4, 6, 8, 12, 20), "puffs": (2, 4),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Field:
    """A field of medicine: what belongs together in a note."""

    conditions: tuple[str, ...]
    symptoms: tuple[str, ...]
    units: tuple[str, ...]
    findings: tuple[str, ...]


FIELDS = (
    Field(("heart failure", "atrial fibrillation", "angina"),
          ("chest pain", "palpitations", "swollen ankles", "breathlessness", "fainting", "cold hands"),
          ("mg", "mcg"), ("blood pressure {n}/{m} mmHg", "pulse {m} and irregular", "a murmur at the apex")),
    Field(("asthma", "chronic bronchitis", "pneumonia"),
          ("cough", "wheezing", "shortness of breath", "fever", "night sweats", "hoarseness"),
          ("puffs", "mg"), ("oxygen saturation {m} percent on air", "crackles at the left base", "peak flow {n}")),
    Field(("gastritis", "reflux", "colitis"),
          ("nausea", "heartburn", "loose stools", "abdominal cramps", "vomiting", "bloating"),
          ("mg", "ml"), ("a soft abdomen", "CRP {m} mg/l", "no blood in the stool")),
    Field(("migraine", "epilepsy", "a small stroke"),
          ("headache", "dizziness", "blurred vision", "numb fingers", "seizures", "double vision"),
          ("mg", "drops"), ("normal reflexes", "a scan without bleeding", "a steady gait")),
    Field(("type 2 diabetes", "an overactive thyroid", "gout"),
          ("thirst", "weight loss", "tiredness", "tremor", "sore toes", "sweating"),
          ("units", "mg", "mcg"), ("glucose {n} mg/dl", "creatinine {m} umol/l", "weight {m} kg")),
    Field(("rheumatoid arthritis", "a hip fracture", "back strain"),
          ("joint pain", "stiffness", "back pain", "swelling of the knee", "muscle cramps", "limping"),
          ("mg", "g", "tablets"), ("a warm knee", "flexion to {m} degrees", "an intact scar")),
    Field(("depression", "an anxiety disorder", "chronic insomnia"),
          ("low mood", "poor sleep", "restlessness", "panic attacks", "loss of appetite", "nightmares"),
          ("mg", "drops", "tablets"), ("good eye contact", "a score of {k} on the scale", "clear speech")),
    Field(("cellulitis", "a urinary infection", "shingles"),
          ("chills", "itching", "burning on passing urine", "a red rash", "blisters", "flank pain"),
          ("mg", "g"), ("white cells {k} per nl", "temperature 38.{k} degrees", "a clean wound")),
)  # fmt: skip
OTHER = {  # words that stand where entities do and are none, and the rest
    "habit": ("smoking", "coffee", "alcohol", "swimming", "gardening", "late meals", "salt", "night shifts", "dancing",
              "red meat", "green tea", "long walks", "cycling", "chocolate", "television", "knitting"),
    "service": ("physiotherapy", "dietetics", "the pain team", "social work", "radiology", "speech therapy", "pharmacy",
                "the chaplain", "dermatology", "the stoma nurse", "occupational therapy", "the night team"),
    "device": ("a walking frame", "compression stockings", "a hearing aid", "oxygen", "a bed rail", "a new mattress",
               "a wrist splint", "reading glasses", "a catheter", "an ice pack", "a drip", "a shower chair"),
    "allergen": ("latex", "peanuts", "plasters", "pollen", "cat hair", "shellfish", "nickel", "house dust", "wool",
                 "strawberries", "bee stings", "perfume"),
    "grievance": ("the noise at night", "the food", "the long wait", "the cold room", "the stairs", "the parking fees",
                  "lost laundry", "the thin pillows", "boredom", "the visiting hours"),
    "kin": ("daughter", "son", "wife", "husband", "neighbour", "sister", "brother", "carer", "niece", "flatmate"),
    "often": ("once daily", "twice daily", "three times a day", "at night", "in the morning", "every other day",
              "every eight hours", "when needed", "before meals", "weekly"),
    "when": ("yesterday", "this morning", "on day {k}", "last week", "overnight", "{k} days ago",
             "after lunch", "on admission"),
}  # fmt: skip

# (a|b) is one of its alternatives, and each {slot} is filled in.
OPENINGS = (
    "{m} year old {woman} (admitted|referred|brought in) with {symptom} (and {symptom2}|{when}).",
    "(Review|Visit) of {title} {family} on ward {ward}, day {k}, (for|because of) {symptom}.",
    "{title} {family}, aged {m}, who has {condition}, (came|presented) with {symptom} {when}.",
    "{patient} was (seen|reviewed) by Dr {doctor} {when} (for|because of) {condition}.",
    "Telephone call with {patient}, who (reports|complains of) {symptom} {when}.",
    "Discharge summary: {patient}, {m} years, {condition}, {k} days on ward {ward}.",
)
MIDDLES = (
    "{drug} {dose} {often} was (started|stopped|restarted|continued) {when}.",
    "(Started|Continues|Remains) on {drug} {dose} {often} and {drug2} {dose2} {often2}.",
    "Stopped {drug} {when} (because of|after) {symptom}.",
    "Stopped {habit} {when} (because of|after) {symptom}.",
    "(Takes|Tolerates|Asks for) {drug} (without trouble|{often}|with water).",
    "(Enjoys|Tolerates|Asks for) {habit} (without trouble|{often}|at home).",
    "Allergic to {drug} and {allergen}.",
    "Allergic to {allergen}(, otherwise well| and to {drug2}|).",
    "{he} was given {drug} {when} and {symptom} (settled|went|returned).",
    "{he} was given {device} {when} and {symptom} (settled|went|returned).",
    "(No|Little|Good) (effect|benefit) from {drug}(; changed to {drug2} {dose2}|, so the dose was raised to {dose}|).",
    "(No|Little|Good) (effect|benefit) from {service}(; {device} was tried|, so it was stopped|).",
    "Medication: {drug} {dose} {often}; {drug2} {dose2} {often2}; {drug3} {dose3} when needed.",
    "{drug} was (exchanged for|replaced by) {drug2} on the advice of {service}.",
    "The {kin} brought {drug} (from home|in a bag) and {device}.",
    "We (advise|suggest|agreed on) {drug} (for|against) {symptom}, and no {habit}.",
    "We (advise|suggest|agreed on) {device} (for|against) {symptom}, and more {habit}.",
    "(Missed|Forgot|Refused) {drug} {when}, (took|accepted) {drug2} instead.",
    "(Missed|Forgot|Refused) {service} {when}.",
    "The (level|effect) of {drug} is (high|low|within range); {dose} from tomorrow.",
    "(Denies|Reports|Describes) {symptom}(, {symptom2}| and {symptom2}|) but (no|also some) {symptom3}.",
    "(Complains of|Is worried about|Mentions) {symptom} {when}.",
    "(Complains of|Is worried about|Mentions) {grievance} {when}.",
    "{symptom} (is better|is worse|has gone|comes and goes) since {drug} was started.",
    "{symptom} (is better|is worse|has gone|comes and goes), {often}.",
    "No {symptom}, no {symptom2}, no {allergen} at home.",
    "The {kin} (noticed|asks about) {symptom} (and {symptom2}|{when}).",
    "The {kin} (noticed|asks about) {grievance} (and {symptom2}|{when}).",
    "On examination {finding}(, {finding2}|); (some|no) {symptom}.",
    "{finding}, {finding2}.",
    "(Slept well|Ate little|Walked to the door) despite {symptom} and {grievance}.",
    "Seen by {doctor} of {service} {when}.",
    "Seen by {service} (and {nurse}|{when}).",
    "Discussed with {doctor} and the {kin}, {relative}.",
    "Discussed with {service} and the {kin}.",
    "{nurse} (dressed the wound|took blood|gave {drug} {dose}|found {symptom}) {when}.",
    "{service} (was asked|will call|sent a letter) {when}.",
    "(Moved|Transferred) from ward {ward} to ward {ward2} {when}.",
    "(Moved|Transferred) to the care of {doctor} {when}.",
    "The {kin}, {relative}, (will collect the tablets|takes care of the shopping|was told).",
    "{patient} (lives alone|walks with a stick|works in a bakery|has two cats) and has {condition}.",
)
CLOSINGS = (
    "Plan: {drug} {dose} {often}, blood tests on day {k}, {service}.",
    "Next: {service}, {device}, (home|ward {ward}) on day {k}.",
    "Follow-up with Dr {doctor} in {k} weeks.",
    "Home with {device} and {drug} {dose} {often}.",
    "(Return|Call ward {ward}) if {symptom} or {symptom2} (returns|gets worse).",
    "Signed, {nurse}.",
)
_NUMBERS = {"k": (2, 9), "m": (31, 99), "n": (101, 199)}
_LABELS = {
    "drug": "DRUG", "dose": "DOSE", "symptom": "SYMPTOM", "family": "PERSON", "patient": "PERSON", "doctor": "PERSON",
    "nurse": "PERSON", "relative": "PERSON",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Words:
    """Names and words that notes may have."""

    drugs: Sequence[str]
    given: Sequence[str]
    family: Sequence[str]
    symptoms: frozenset[str]
    other: Mapping[str, Sequence[str]]


ALL = Words(DRUGS, GIVEN, FAMILY, frozenset(symptom for field in FIELDS for symptom in field.symptoms), OTHER)
TRAINING = Words(
    DRUGS[: len(DRUGS) // 2], GIVEN[::2], FAMILY[::2], frozenset(s for field in FIELDS for s in field.symptoms[::2]),
    {kind: words[::2] for kind, words in OTHER.items()},
)  # fmt: skip
UNSEEN = dataclasses.replace(ALL, drugs=DRUGS[len(DRUGS) // 2 :], given=GIVEN[1::2], family=FAMILY[1::2])


@dataclasses.dataclass(frozen=True)
class Sentence:
    """A sentence of a note, and its entities as (begin, end, label) of its letters."""

    text: str
    entities: tuple[tuple[int, int, str], ...]

    def words(self) -> Iterator[tuple[str, str]]:
        """Each word and its label in IOB2."""
        for match in WORD.finditer(self.text):
            tags = (
                f"{'B' if begin == match.start() else 'I'}-{label}"
                for begin, end, label in self.entities
                if begin <= match.start() < end
            )
            yield match[0], next(tags, "O")


def fill(rng: random.Random, template: str, values: Mapping[str, str]) -> Sentence:
    """A template with alternatives chosen and slots filled in."""
    text, entities = "", []
    for literal, slot in re.findall(r"([^{]*)(?:\{(\w+)\})?", choose(rng, template)):
        text += literal
        if slot:
            if label := _LABELS.get(slot.rstrip("23")):
                entities.append((len(text), len(text) + len(values[slot]), label))
            text += values[slot]
    text = re.sub(r"[a-z]{5,}", lambda match: misspell(rng, match[0]), text)
    return Sentence(text[0].upper() + text[1:], tuple(entities))


def misspell(rng: random.Random, word: str) -> str:
    """Once in 50 words two letters change places."""
    i = rng.randrange(1, len(word) - 1) if rng.random() < 0.02 else len(word)
    return word[:i] + word[i : i + 2][::-1] + word[i + 2 :]


def choose(rng: random.Random, template: str) -> str:
    """A template without alternatives and numbers."""
    text = re.sub(r"\(([^()]*)\)", lambda match: rng.choice(match[1].split("|")), template)
    return re.sub(r"\{([kmn])\}", lambda match: str(rng.randint(*_NUMBERS[match[1]])), text)


def values_of_note(rng: random.Random, words: Words) -> Iterator[dict[str, str]]:
    """Values of the slots for one sentence of a note after the other: people stay, most drugs are of its field."""
    field = rng.choice(FIELDS)
    of_field = [drug for drug in words.drugs if _field(drug) is field]
    drugs = list(dict.fromkeys(rng.sample(of_field, 3) + rng.sample(words.drugs, 1)))
    symptoms = [s for s in field.symptoms if s in words.symptoms]
    symptoms = list(dict.fromkeys(symptoms + rng.sample(sorted(words.symptoms), 2)))
    roles = ("patient", "doctor", "nurse", "relative")
    people = {role: f"{rng.choice(words.given)} {rng.choice(words.family)}" for role in roles}
    he, woman, title = rng.choice((("he", "man", "Mr"), ("she", "woman", "Ms")))
    people |= {"family": people["patient"].split()[1], "relative": people["relative"].split()[rng.randrange(2)]}
    people |= {"he": he, "woman": woman, "title": title, "condition": rng.choice(field.conditions)}
    while True:
        values = dict(people)
        three = zip(("", "2", "3"), rng.sample(drugs, 3), rng.sample(symptoms, 3), strict=True)
        for suffix, drug, symptom in three:
            form = rng.choice((*12 * ("",), " forte", " retard", " depot"))
            own = {"drug": drug + form, "dose": dose(rng, drug), "symptom": symptom, "ward": rng.choice(WARDS)}
            own |= {kind: choose(rng, rng.choice(found)) for kind, found in words.other.items()}
            own["finding"] = choose(rng, rng.choice(field.findings))
            values |= {f"{kind}{suffix}": value for kind, value in own.items()}
        yield values


def _field(drug: str) -> Field:
    return FIELDS[DRUGS.index(drug) % len(FIELDS)]


def dose(rng: random.Random, drug: str) -> str:
    """A number and the drug's unit."""
    units = _field(drug).units
    unit = units[DRUGS.index(drug) // len(FIELDS) % len(units)]
    return f"{rng.choice(UNITS[unit])} {unit}"


def make_note(split: str, number: int, words: Words) -> list[list[Sentence]]:
    """A note's paragraphs: an opening, five to nine sentences, one or two at its end."""
    rng = random.Random(f"{split} {number}")
    parts = ((OPENINGS, 1), (MIDDLES, rng.randint(5, 9)), (CLOSINGS, rng.randint(1, 2)))
    values = values_of_note(rng, words)
    return [[fill(rng, template, next(values)) for template in rng.sample(part, count)] for part, count in parts]


def labelled(splits: Mapping[str, Words], count: int) -> dict[str, list[Sentence]]:
    """The sentences of each split's notes; one that comes again, in a split or another, is left out."""
    found: dict[str, dict[str, Sentence]] = {}
    for split, words in splits.items():
        of_split = itertools.chain.from_iterable(part for i in range(count) for part in make_note(split, i, words))
        known = set(itertools.chain.from_iterable(found.values()))
        found[split] = {sentence.text: sentence for sentence in of_split if sentence.text not in known}
    return {split: list(of_split.values()) for split, of_split in found.items()}


def main() -> None:
    """The command; see the module's docstring."""
    parser = CommandParser(description=__doc__)
    parser.add_argument("--out", type=local_path, default=Path("notes"))
    parser.add_argument("--notes", type=number(int, 1), default=4000, help="notes without labels")
    parser.add_argument("--labelled", type=number(int, 1), default=60, help="notes in each of the other files")
    args = parser.parse_args()
    if args.out.exists():
        parser.error(f"--out {args.out} is there already: give another name, or delete it")
    (args.out / "text").mkdir(parents=True)
    (args.out / "ner").mkdir()
    for i in range(args.notes):
        text = "\n".join(" ".join(sentence.text for sentence in part) for part in make_note("text", i, ALL))
        (args.out / "text" / f"{i:05}.txt").write_text(text + "\n", encoding="utf-8")
    splits = labelled({"train": TRAINING, "dev": UNSEEN, "test": UNSEEN, "new": UNSEEN}, args.labelled)
    rows = ({"text": s.text, "tokens": [word for word, _ in s.words()]} for s in splits["new"])
    (args.out / "new.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for split in ("train", "dev", "test"):
        lines = ("".join(f"{word} {label}\n" for word, label in s.words()) + "\n" for s in splits[split])
        (args.out / "ner" / f"{split}.conll").write_text("".join(lines), encoding="utf-8")
    counts = ", ".join(f"{len(found):,} {split}" for split, found in splits.items())
    print(f"{args.out}: {args.notes:,} notes without labels; sentences: {counts}, none of them twice")


if __name__ == "__main__":
    main()
