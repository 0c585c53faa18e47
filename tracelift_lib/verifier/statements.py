"""Where a text states its final answer, and where a reader would end that statement."""

from __future__ import annotations

import re

from tracelift_lib.problems.prompts import without_thinking
from tracelift_lib.verifier.answers import MAX_ANSWER

# Ways to state a final answer; a text may use several, but they must agree. What "is correct" is no answer, and a list
# of choices (A: 3, B: 4) states none.
STATED = re.compile(
    r"####\s*|(?:answer\**\s*(?:(?:is|(?:would|will|should|must)\s+be)\b(?!\s+(?:not|correct|right|wrong|incorrect|reasonable)\b)(?!n't)\s*:?|[:=])"
    r"|final\s+answer\**\s*\n|(?<![^\n])A:[ \t](?![^\n]*\n\s*B:))(?:\s|\*\*)*",
    re.IGNORECASE,
)
BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
MARK = "\0"  # stands for a box
# "3 or \boxed{4}", "\boxed{3}, 4": a box with another candidate beside it.
BEFORE_BOX = re.compile(r"\d\W{0,3}\bor\W{0,3}$")
AFTER_BOX = re.compile(r"\W{0,3}(?:,|\bor\b|\band\b)[\s$]{0,3}-?\.?\d")
BETWEEN_BOXES = re.compile(r"[\s$]*(?:\\[)\]])?(?:,|,?\s*(?:\\text\{\s*)?\band\b(?:\s*\})?)[\s$]*(?:\\[(\[])?[\s$]*")
# Maths may hold full stops; a dollar sign before a space closes none ("$18. She pays $5").
MATHS = re.compile(
    r"\\\[.{1,1000}?\\\]|\\\(.{1,1000}?\\\)|\$\$.{1,1000}?\$\$|\$(?!\s)[^$\n]{1,1000}?(?<!\s)\$(?!\d)", re.DOTALL
)
OPENING = re.compile(
    r"\s*(?:\\\[.{1,1000}?\\\]|\$\$.{1,1000}?\$\$)", re.DOTALL
)  # displayed maths may take several lines
# A full stop ends a sentence only before a space; reasons given behind the answer are no part of it.
SENTENCE = re.compile(
    r"(?:[.?!](?:\*\*|[\"')\]])?(?=\s)|\u3002|[,;:]?\s+(?:because|since|where|which|as)\b|,?\s+so\b|\s+\(?i\.e\.)",
    re.IGNORECASE,
)
SHORT_FORM = re.compile(r"\b(?:approx|ca|no|vs|cf|e\.g|i\.e|mr|mrs|dr|st|[ap]\.?\s?m)$", re.IGNORECASE)
IS = re.compile(
    r"^[^\W\d_][^=]*?(?:\bis|\bare|\bequals|\bwas)\b\s*:?\s*(?=[^\s])(?!.*\b(?:is|are|equals|was)\b)", re.DOTALL
)
REMARK = re.compile(r"(?<=[\w%])\s+\([^()]*(?:[a-z]{2}|=|[*+/-]\s)[^()]*\)\s*\.?\s*$")  # "12 (3 * 4)", "5 (not 6)"
# What a model writes on behind its answer: the next problem of a few-shot prompt, or the next turn of a chat.
RUN_ON = re.compile(
    r"\n\s*(?:\W{0,4}(?:Question|Problem|Exercise)\b|Q\d*\s*[:.])|\bQuestion\s*\d*\s*:|<\|(?:im_start|im_end|eot_id|endoftext|user)"
    r"|</s>|\[INST\]|\n\s*(?:Human|User)\s*:"
)


def own_text(text: str) -> str:
    """What the text says on its own problem: without thinking, and up to where it runs on to the next problem."""
    text = without_thinking(text)
    for match in RUN_ON.finditer(text):
        if re.search(r"\d|" + STATED.pattern, text[: match.start()], re.IGNORECASE):
            return text[: match.start()]
    return text


def stated_answers(text: str) -> list[tuple[str, bool]]:
    """All answers that `text` states, each with whether it is maths (LaTeX); "" for one that cannot be read."""
    boxes, rest = _boxes(own_text(text).replace(MARK, " "))
    marks = [*STATED.finditer(rest)]
    ends = [mark.start() for mark in marks[1:]] + [len(rest)]
    sentences = [(rest[mark.end() : end], end < len(rest)) for mark, end in zip(marks, ends)]
    found = [_sentence(said[: 2 * MAX_ANSWER]) for said, _ in sentences]
    return boxes + [
        answer
        for sentence, (said, more) in zip(found, sentences)
        if not (more and sentence == said.strip() and _introduces(sentence))
        for answer in _sentence_answer(sentence)
    ]


def _boxes(text: str) -> tuple[list[tuple[str, bool]], str]:
    """The contents of all boxes, listed ones ("\\boxed{1} and \\boxed{2}") as one, and the text with MARKs for them."""
    boxes, pieces, end = [], [], 0
    for match in BOX.finditer(text):
        if match.start() < end:  # a box in a box
            continue
        content = _braced(text, match.end())
        between = text[end : match.start()]
        before = between[-12:]
        end = len(text) if content is None else match.end() + len(content) + 1
        alone = not (BEFORE_BOX.search(before) or AFTER_BOX.match(text[end : end + 12]))
        read = content if content and alone and not BOX.search(content) else ""
        listed = boxes and BETWEEN_BOXES.fullmatch(between[-60:]) and len(between) <= 60
        if listed and read and boxes[-1][0] not in ("", read):
            boxes[-1] = (f"{boxes[-1][0]}, {read}", True)
        else:
            boxes.append((read, True))
        pieces += [between, MARK]
    return boxes, "".join([*pieces, text[end:]])


def _braced(text: str, start: int) -> str | None:
    """The text from `start` to the brace that closes it; None if there is none near."""
    depth = 1
    for match in re.compile(r"\\.|[{}]", re.DOTALL).finditer(text, start, start + MAX_ANSWER):
        depth += (match[0] == "{") - (match[0] == "}")
        if depth == 0:
            return text[start : match.start()]
    return None


def _sentence(text: str) -> str:
    """The first sentence of `text`, which ends with its line at the latest."""
    opening = OPENING.match(text)
    start = opening.end() if opening else 0
    line, _, _ = text[start:].partition("\n")
    masked = MATHS.sub(_mask, line)
    for end in SENTENCE.finditer(masked):
        before = masked[: end.start()]
        if (text[:start] + before).strip() and not (end[0][0] == "." and SHORT_FORM.search(before)):
            in_maths = line[end.start()] != masked[end.start()]  # "$12.$ It ..."
            return (text[:start] + line[: end.start() + in_maths]).strip()
    return (text[:start] + line).strip()


def _mask(maths: re.Match) -> str:
    """As many letters as `maths` has, and a full stop for one at its end."""
    return "x" * (len(maths[0]) - 1) + ("." if re.search(r"\.\s*\W{1,2}$", maths[0]) else "x")


def _introduces(sentence: str) -> bool:
    """Whether a statement is only the words before another one ("Final Answer: The final" answer is 5)."""
    return not re.search(r"[\d$\\" + MARK + r"]", sentence) and len(sentence.split()) <= 8


def _sentence_answer(sentence: str) -> list[tuple[str, bool]]:
    """The answer that a sentence states; none of its own if it only introduces a box."""
    before, box, _ = sentence.partition(MARK)
    if box:  # "The answer is $2 + 3 = \boxed{5}$", but "the answer is 3, \boxed{5}" names two
        introduces = before.rstrip().endswith("=") or not re.search(r"\d", MATHS.sub("", before))
        return [] if introduces else [("", False)]
    subject = IS.match(sentence)  # "The largest $n$ is 34"
    answer = sentence[subject.end() :] if subject else sentence
    maths = MATHS.search(answer) is not None or re.search(r"\\[(\[]", answer) is not None
    return [(answer if maths else REMARK.sub("", answer), maths)]
