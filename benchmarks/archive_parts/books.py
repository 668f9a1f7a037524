"""Questions about the books themselves: what a reader might ask, answered by one passage each."""

from benchmarks.archive_parts.stream import Asked, Planted
from tokenizer import Tokenizer

BAND = "books"
# What stands in the text, the question, and a word that an answer must have.
QUESTIONS = (
    (
        "It has twenty-one strings",
        "How many strings has the triangular Egyptian harp in the Louvre?",
        "twenty-one",
    ),
    (
        "a kind of guitar, was almost identical",
        "Which kind of instrument was the nofre of the ancient Egyptians?",
        "guitar",
    ),
    (
        "from a tomb at Thebes, on which two female performers",
        "Where is the tomb with the fresco of two women who play the nofre?",
        "Thebes",
    ),
    (
        "He had bought the mortgage from the bank",
        "From whom did Ames buy the mortgage of the Express?",
        "bank",
    ),
    (
        "I sent a sample of his stuff to the Iles",
        "To which laboratory was the sample of beer sent?",
        "Iles",
    ),
    ("four per cent alcohol", "How much alcohol was in the sample of beer?", "four per cent"),
    (
        "Emerson says it is the first of painters",
        "Who says that light is the first of painters?",
        "Emerson",
    ),
    ("put it into brown bottles", "In bottles of which colour do the brewers put beer?", "brown"),
    (
        "fled secretly, with her terrified daughter, to England",
        "To which country did the wife of Ames flee with her daughter?",
        "England",
    ),
    ("He had sailed for Europe", "Where had Lafelle sailed?", "Europe"),
    (
        "in consultation with Senator Gossitch",
        "Which senator was to arrange a meeting with the Governor in Albany?",
        "Gossitch",
    ),
    (
        "five hundred thousand dollars will grease",
        "How many dollars will grease the wheels?",
        "five hundred thousand",
    ),
    (
        "his hacienda, Maria Rosa, a day's journey",
        "What is the name of Don Nicolás's hacienda?",
        "Maria Rosa",
    ),
    (
        "We wore the skins of animals",
        "What did the family of Don Nicolás wear when they hid from the soldiers?",
        "skins",
    ),
    (
        "señora a small teaspoonful every hour",
        "How often is the señora to be given a teaspoonful of the medicine?",
        "hour",
    ),
    (
        "Juan and Lázaro by a quick and skillful effort",
        "Who kept the canoe upright when Carmen threw herself into Josè's lap?",
        "Juan",
    ),
    ("many years in Simití", "In which town had Lázaro lived for many years?", "Simit"),
    (
        "when King Philip sent it a Bishop",
        "Which king sent a Bishop to the city that Heredia founded?",
        "Philip",
    ),
    ("Sawkins trimmed the wick", "Who trimmed the wick of the lamp in the cart?", "Sawkins"),
    (
        "It was a quarter to eleven",
        "What time was it when Crass drew out his watch after they had fetched the coffin?",
        "quarter to eleven",
    ),
    (
        "One day Crass, who was one of these upholders",
        "Who scored off Owen in the Wage Slave Market?",
        "Crass",
    ),
    (
        "hid them up the chimney",
        "Where did Slyme hide the broken rolls of paper?",
        "chimney",
    ),
    (
        "Just now Rushton & Co. were almost the only firm",
        "Which firm in Mugsborough had work when hardly any other had?",
        "Rushton",
    ),
    (
        "afraid not, Newman",
        "Which workman did Hunter meet when he was winded by his climb up the hill?",
        "Newman",
    ),
)


def book_questions(text: str, tokenizer: Tokenizer) -> list[Asked]:
    """The questions whose passages are in a text, the nearest to its end first."""
    flat = text.replace("\n", " ")  # as long as the text
    places = sorted(
        (flat.find(there), there, question, answer) for there, question, answer in QUESTIONS
    )
    found, distance, end = [], 0, len(text)
    for at, there, question, answer in reversed(places):
        if at < 0:
            continue
        distance += len(tokenizer.encode(text[at:end]))
        end = at
        thing = Planted(BAND, (there,), "", question, "", answer)
        found.append(Asked(BAND, (distance,), thing))
    return found
