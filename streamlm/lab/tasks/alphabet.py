"""The ids that tasks are written with: digits, names, values, phrases, and the filler between."""

from dataclasses import dataclass, field

import numpy as np

from tokenizer import Tokenizer

PHRASES = ("tell", "ask", "is", "value")


@dataclass(frozen=True, eq=False)
class Alphabet:
    """What a model can read and be asked for.

    Attributes:
        bos: what stands before every sequence.
        digits: [10] ids of 0 to 9; keys: ids that name things; values: ids that they stand for.
        phrases: ids before a passkey ("tell") and before its question ("ask"), between a name and
            what it stands for ("is"), before the question for its value ("value").
        filler: ids. Filler is cut from them as they stand where `running`, else drawn from them.
        family: 0 where any name may stand for any value; n where each name has n values of its
            own, the i-th name those from n·i on.
    """

    bos: int
    digits: np.ndarray
    keys: np.ndarray
    values: np.ndarray
    phrases: dict[str, np.ndarray]
    filler: np.ndarray = field(repr=False)
    running: bool = False
    family: int = 0

    @classmethod
    def plain(cls, vocab_size: int = 256, *, family: int = 0) -> "Alphabet":
        """Ids without meaning, for models that are trained on the tasks: no id has two uses.

        Without families, half of the ids are names and a quarter values; with them, an eighth is
        filler and each name has `family` values.

        Raises:
            ValueError: too few ids to go round.
        """
        least = 32 + 2 * family
        if vocab_size < least:
            raise ValueError(f"vocab_size = {vocab_size}; allowed: at least {least}")
        ids = np.arange(1, vocab_size)  # 0 is bos
        marks, digits, others = np.split(ids, [len(PHRASES), len(PHRASES) + 10])
        names = len(others) * 7 // 8 // (family + 1) if family else len(others) // 2
        keys, values, filler = np.split(
            others, [names, names * (family + 1) if family else len(others) * 3 // 4]
        )
        phrases = {name: marks[i : i + 1] for i, name in enumerate(PHRASES)}
        return cls(0, digits, keys, values, phrases, filler, family=family)

    @classmethod
    def of_text(cls, tokenizer: Tokenizer, text: np.ndarray) -> "Alphabet":
        """Words of a language for a model of text.

        Names and values, turn by turn, are whole words of middling frequency in `text`. Filler is
        cut from it, with these few words overwritten by the commonest one, so that nothing but
        the task names them.

        Args:
            text: ids, such as `Corpus.tokens`.

        Raises:
            ValueError: the tokenizer lacks digits, or the text has too few words.
        """
        digits = [tokenizer.encode(str(digit)) for digit in range(10)]
        if any(len(ids) != 1 for ids in digits):
            raise ValueError("the tokenizer spells digits in several tokens; one each is needed")
        counts = np.bincount(text, minlength=tokenizer.vocab_size)
        order = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
        words = [id for id in order.tolist() if _is_word(tokenizer.decode_bytes([id]))]
        if len(words) < 32:
            raise ValueError(f"a text with {len(words)} different words; allowed: at least 32")
        chosen = np.array(words[len(words) // 4 :][:512])
        filler = np.where(np.isin(text, chosen), words[0], text)
        phrases = {
            "tell": "\nThe pass key is ",
            "ask": "\nWhat is the pass key? The pass key is ",
            "is": " is",
            "value": ". So the value of",
        }
        return cls(
            bos=tokenizer.bos_id,
            digits=np.concatenate(digits).astype(np.int64),
            keys=chosen[::2],
            values=chosen[1::2],
            phrases={k: tokenizer.encode(v).astype(np.int64) for k, v in phrases.items()},
            filler=filler,
            running=True,
        )

    def fill(self, random: np.random.Generator, n: int, length: int) -> np.ndarray:
        """Filler: [n, length] ids; running text goes on at its beginning where it ends."""
        if not self.running:
            return self.filler[random.integers(0, len(self.filler), (n, length))]
        start = random.integers(0, len(self.filler), (n, 1))
        return self.filler[(start + np.arange(length)) % len(self.filler)].astype(np.int64)

    def values_of(self, random: np.random.Generator, keys: np.ndarray) -> np.ndarray:
        """A value for each name: indices into `keys` of any shape → ids of that shape."""
        chosen = random.integers(0, self.family or len(self.values), keys.shape)
        return self.values[chosen + self.family * keys]

    def choices_of(self, keys: np.ndarray) -> np.ndarray:
        """What each name may stand for: indices [Q] → ids [Q, n], each as likely as any other."""
        if not self.family:
            return np.broadcast_to(self.values, (len(keys), len(self.values)))
        return self.values.reshape(-1, self.family)[keys]


def _is_word(data: bytes) -> bool:
    """A space and at least three ASCII letters, the first of them small."""
    return data[:1] == b" " and data[1:].isalpha() and data[1:].islower() and len(data) > 3


def distinct(random: np.random.Generator, count: int, n: int, length: int) -> np.ndarray:
    """`length` different numbers below `count` for each of n rows: [n, length].

    Raises:
        ValueError: there are not so many.
    """
    if length > count:
        raise ValueError(f"{length} different ids are needed; the alphabet has {count}")
    return random.permuted(np.broadcast_to(np.arange(count), (n, count)), axis=1)[:, :length]
