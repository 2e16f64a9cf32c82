"""Fixed demonstrations for the prompts of Self-Instruct: which tasks are classifications, examples.

Written for this project after the pattern of yizhongw/self-instruct@0b26cca
self_instruct/templates; none of its texts is copied.
"""

CLASSIFICATION: tuple[tuple[str, bool], ...] = (
    ("Decide whether the weather report promises rain or not.", True),
    ("Tell a short story about a lighthouse keeper.", False),
    ("Sort the review into one of three groups: praise, complaint, or question.", True),
    ("Explain how bread rises, in words for a child.", False),
    ("Answer the quiz question with A, B, C or D.", True),
    ("Translate the sentence into Spanish.", False),
    ("Is the number odd or even?", True),
    ("List five things to pack for a week in the mountains.", False),
    ("Say if the two sentences mean the same. Answer yes or no.", True),
    ("Rewrite the message so that it sounds friendlier.", False),
    ("Name the language that the text is written in, out of English, French and German.", True),
    ("Draft a plan for a garden of four beds.", False),
)
"""Tasks, and whether each is a classification with a finite set of labels."""

OUTPUT_FIRST = """\
Task: Decide whether the weather report promises rain or not.
Class label: rain
Report: Clouds will gather over the coast by noon, with heavy showers until the evening.
Class label: no rain
Report: A clear sky all day, with a light wind from the east.

Task: Sort the review into one of three groups: praise, complaint, or question.
Class label: complaint
Review: The zip broke on the second day, and nobody has answered my letter.
Class label: question
Review: Does this kettle switch itself off when the water boils?
Class label: praise
Review: The warmest coat that I have ever owned, and it looks good too.

Task: Answer the quiz question with A, B, C or D.
Class label: B
Question: Which of these is a planet?
A. the Moon
B. Venus
C. the Sun
D. Sirius
Class label: D
Question: How many legs does a spider have?
A. two
B. four
C. six
D. eight

Task: Say if the two sentences mean the same. Answer yes or no.
Class label: yes
Sentence 1: The shop opens at nine.
Sentence 2: You can go in from nine o'clock.
Class label: no
Sentence 1: She lent him a book.
Sentence 2: He gave her a book.

Task: Which season comes after spring: summer, autumn, or winter?
Class label: summer
"""
"""Classification tasks with their instances, the label before the input."""

INPUT_FIRST = """\
Task: Name three ways to keep warm in a cold house.
Output:
- Wear several thin layers.
- Close the doors between the rooms.
- Drink something hot.

Task: Take all the city names out of the text and separate them with commas.
Example 1
Text: The train left Lyon at dawn, stopped in Turin, and reached Milan by noon.
Output: Lyon, Turin, Milan
Example 2
Text: Between Oslo and Bergen the line climbs to a high plateau.
Output: Oslo, Bergen

Task: Convert 3 kilometres to metres.
Output: 3 km = 3000 m

Task: Make the sentence more polite.
Example 1
Sentence: Send me the papers today.
Output: Could you please send me the papers today?
Example 2
Sentence: Your music is too loud.
Output: Would you mind turning the music down a little?

Task: Write a Python function that gives the larger of two numbers.
Output:
def larger(a, b):
    return a if a > b else b

Task: Write a short note to a neighbour who has looked after your cat.
Output:
Dear Ms Lind,
thank you so much for feeding Tom while we were away. He seems to have had a fine week.
Yours, Ann
"""
"""Other tasks with their instances, the input before the output."""
