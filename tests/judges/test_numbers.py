"""Numbers in every spelling, and the one that a response gives as its answer, whatever it writes around it."""

import time
from fractions import Fraction

import pytest

from align.judges.numbers import final_number, numbers

MINUSES = "-\u2010\u2011\u2012\u2013\u2212\ufe63\uff0d"


@pytest.mark.parametrize(
    "text, expected",
    [
        (r"-\frac{3}{4} \frac{-3}{4} \frac{3}{-4} -\frac{-3}{4}", ["-3/4", "-3/4", "-3/4", "3/4"]),
        (r"\frac13 \frac3{3} \tfrac{1}{3} \cfrac{1}{3} \frac{1,000}{3}", ["1/3", "1", "1/3", "1/3", "1000/3"]),
        (r"\left( \frac{1}{3} \right) -\left(\frac{3}{4}\right) (-3)/4", ["1/3", "-3/4", "-3/4"]),
        (r"-2\frac{1}{2} 5-\frac{1}{2} -\dfrac{ 7 }{ 2 }", ["-5/2", "5", "1/2", "-7/2"]),
        ("½ 2½ -¾ ⅓", ["1/2", "5/2", "-3/4", "1/3"]),
        (r"14 {, }916 1'000'000 12_500 1\;000", ["14916", "1000000", "12500", "1000"]),
        ("2.5 million, 3 thousand, $1.2 billion", ["2500000", "3000", "1200000000"]),
        (r"3 \times 10^5, 1.5e3, 2*10^{-2}, 4 x 10^2", ["300000", "1500", "1/50", "400"]),
        (r"28 percent, 28\%, $28$ %, 1,000.99\u20ac, 5m\u00b2", ["28", "28", "28", "100099/100", "5"]),
        (r"\sqrt{2} \sqrt[3]{5} 2\pi \frac{1}{2}", ["1/2"]),
        ("negative 3, 10 minus 3, 8 eggs minus 3", ["-3", "10", "3", "8", "3"]),
        ("pages 10\u201315, 1990\u201392", ["10", "15", "1990", "92"]),
        ("AZYUK2A", []),
        ("1 000, 12 345 678, 10 2000, 3 1/2", ["1000", "12345678", "10", "2000", "7/2"]),
        # TeX's spacing, text, braces and fractions, anywhere in a number
        (r"-\dfrac{\,3}{4} \frac{3\;}{\!4} \tfrac{ -\:3 }{4} \cfrac{\ 3}{~4}", ["-3/4", "3/4", "-3/4", "3/4"]),
        (
            r"\frac{\text{3}}{\mathrm{4}} \frac{{3}}{{4}} \frac{(3)}{4} \frac{\left(-3\right)}{4}",
            ["3/4"] * 3 + ["-3/4"],
        ),
        (r"\frac12 \frac 1 2, \frac1{12} \frac{12}5 \frac{+1}{2}", ["1/2", "1/2", "1/12", "12/5", "1/2"]),
        (r"1\frac12, -1\,\tfrac12, 2\ \frac{3}{4}, 2~\dfrac34, 2{\frac{3}{4}}", ["3/2", "-3/2"] + ["11/4"] * 3),
        (r"\frac{3.5}{2} \frac{1{,}000}{3} \frac{12\,345}{100} \frac{\frac12}{3}", ["7/4", "1000/3", "2469/20", "1/6"]),
        (r"12\,345 12\;345 12\!,\!345 12~345 12{,}345{,}678 12\thinspace345", ["12345"] * 4 + ["12345678", "12345"]),
        (r"0{,}5 3{,}1416 3{.}5 12{,}5\%", ["1/2", "3927/1250", "7/2", "25/2"]),
        (r"\text{18} 18\text{ cm}^2 18\,\mathrm{m}^{3} \$\,18 18\,\% {18}", ["18"] * 6),
        (r"1.5\,\times\,10^{3} 3\,/\,4 5\,\text{and}\,7 5\quad7", ["1500", "3/4", "5", "7", "5", "7"]),
        (r"\frac{\pi}{4} \frac{x}{2} \frac{\sqrt{3}}{2} \frac{3}{0}", []),
        ("100~200 people, ~50", ["100", "200", "50"]),
    ],
)
def test_spellings(text, expected):
    assert numbers(text.replace(r"\u20ac", "\u20ac").replace(r"\u00b2", "\u00b2")) == list(map(Fraction, expected))


@pytest.mark.parametrize("minus", MINUSES)
def test_every_minus_is_one(minus):
    for form in (
        "{}3",
        "#### {}3",
        "It drops to {}3 degrees.",
        "The answer is {}3.",
        r"\boxed{{{}3}}",
        "x = {}3",
        "${}3$",
    ):
        assert final_number(form.format(minus)) == -3, (form, minus)
    assert final_number(rf"\boxed{{{minus} \frac{{1}}{{2}}}}") == Fraction(-1, 2)


ANSWERS = ["18", "-18", "1,018", "3/4", "-2.5", "$18", "18%", "18 eggs", "**18**", r"\$18", "18 cm", "- 18"]
REASONS = [
    "(since 24 - 6 = 18)",
    "(check: 18 + 6 = 24)",
    ", because 18 + 6 = 24",
    "because 24 - 6 is 18 and 5 are left",
    ", since half of 36 is what she keeps",
    ", as 3 * 6 = 18",
    "; 2 less than 20",
    "\u2014 2 less than 20",
    "(i.e. 6 * 3)",
    ", for 7 + 11 = 18",
    ", given that she had 24",
    "= 6 * 3",
    "= 20 - 2",
]


@pytest.mark.parametrize("reason", REASONS)
@pytest.mark.parametrize("opening", ["The answer is {}.", "#### {}", "**Answer:** {}", "So the final answer is: {}."])
def test_what_speaks_for_an_answer_is_not_the_answer(opening, reason):
    for answer in ANSWERS[:-1]:
        gap = "" if reason[0] in ",;" else " "
        assert final_number(opening.format(f"{answer}{gap}{reason}")) == numbers(answer)[0], (answer, reason)


@pytest.mark.parametrize(
    "check",
    [
        "Check: 18 + 6 = 24.",
        "Let me check: 18 + 6 = 24, which is right.",
        "To verify, 18 / 3 = 6.",
        "(Check: 18 + 6 = 24)",
        "Verification: 18 * 2 = 36",
        "We can verify that 18 and 6 make 24.",
        "This is correct because 18 + 6 = 24.",
    ],
)
@pytest.mark.parametrize("gap", [" ", "\n", "\n\n"])
def test_a_check_behind_the_answer_is_not_the_answer(check, gap):
    for response in (
        "She has 18 eggs left.",
        "24 - 6 = 18.",
        "The answer is 18.",
        r"Thus \boxed{18}.",
        "It is **18**.",
    ):
        assert final_number(response + gap + check) == 18


@pytest.mark.parametrize(
    "response, expected",
    [
        ("She has 18 eggs left (24 - 6 = 18).", "18"),
        ("She has 18 eggs, because 18 + 6 = 24.", "18"),
        ("It is 18, since 18 * 2 = 36.", "18"),
        # reasons that lead to the answer, and checks that find it wrong
        ("Since 24 - 6 = 18, she has 18, and half of it is 9.", "9"),
        ("He has 5 dogs and since each eats 2, he needs 10 cups.", "10"),
        ("First guess 9. Let me check: 12 - 2 = 10, so it is 10.", "10"),
        ("She has 20. Check: 20 + 6 = 26, not 24. So she has 18.", "18"),
        ("Because 5 + 3 = 8, she has 8 (of 10).", "8"),
        ("The result is 18 (3 * 6).", "18"),
        ("She has 18 dollars. (She started with 24 and spent 6.)", "18"),
        ("Therefore x = -7. Plugging it in: 2(-7) + 20 = 6.", "-7"),
        ("**18** eggs remain.\n\n*Check*: 18 + 6 = 24", "18"),
        ("The answer is 18, which we can verify: 18 + 6 = 24.", "18"),
        # chains of equals
        ("The answer is 20 = 5 * 4.", "20"),
        ("The answer is 5 * 4 = 20.", "20"),
        ("The answer is x = 5.", "5"),
        ("The answer is x = 2 + 3 = 5.", "5"),
        (r"The answer is $\frac{10}{3} \approx 3.33$.", "10/3"),
        (r"\boxed{x = -\frac{3}{4}}", "-3/4"),
        (r"\boxed{3x = 12}", "12"),
        (r"\boxed{-\dfrac{\,3}{4}}", "-3/4"),
        (r"\boxed{12\;345}", "12345"),
        (r"The answer is $x = -\,5$.", "-5"),
        (r"The answer is $1{,}200{,}300$.", "1200300"),
        (r"#### -\frac{\,3}{4}", "-3/4"),
        (r"Then \boxed{\text{(A) }18} of 24.", "18"),
        (r"$\frac{x}{2} = 9$, so the answer is \(x = 2\,\cdot\,9 = 18\).", "18"),
        (r"Answer \[ 9 \]", "9"),
        (r"The final answer is $28 \%$. I hope it is correct.", "28"),
        ("The final answer is: 7,425,000 people", "7425000"),
        (r"\boxed{\sqrt{2}}", None),
        ("The area is 18 cm^{2}.", "18"),
        ("It is 18 m^2, or 18 m\u00b2", "18"),
        ("$x_{1}$ is 18 and $x_2$ too: 18", "18"),
        ("2^{3} = 8", "8"),
        ("**Final Answer**\n\n18 eggs, half of 36", "18"),
        ("The answer is - 3.", "-3"),
        ("Answer:\n- 3 eggs", "3"),
        ("-$\\frac{3}{4}$", "-3/4"),
        ("The answer is eighteen (18).", "18"),
        ("The answer is x = 18 (x + 6 = 24).", "18"),
        ("The answer is 6 + 12 = 18 eggs.", "18"),
        ("18 + 6 = 24, so the answer is 18.", "18"),
        ("It costs $18/day.", "18"),
        ("The answer is 1 000.", "1000"),
        ("It is 1 234 567 km", "1234567"),
    ],
)
def test_final_number(response, expected):
    assert final_number(response) == (None if expected is None else Fraction(expected))


PIECES = [
    "1 ",
    "1=",
    "(",
    "-",
    r"\frac{1}{2}",
    "Check: 1 ",
    "because ",
    "{,",
    "1,000,",
    "\\",
    "1 x 10^",
    " ",
    "\n",
    "9",
]
PIECES += ["~", r"\,", "{", r"\frac{", r"\text{", r"\text{1}", "1{,}1", "1 -"]


@pytest.mark.parametrize("piece", PIECES)
def test_no_text_takes_long(piece):
    start = time.perf_counter()
    final_number(piece * (20_000 // len(piece)))
    assert time.perf_counter() - start < 5
