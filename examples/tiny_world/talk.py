"""Everyday talk: questions, requests and headings that have nothing to do with the world's facts.

A token the base model never reads gets no meaning of its own: the softmax pushes all of them to
one and the same vector (cosine 1.00), and fine-tuning then cannot tell `Where` from `When`. So the
words that questions and prompt templates are made of occur here, about things nobody will be asked
about. Answers are fragments; no line is laid out as a prompt.
"""

import random

from .stories import capitalise

_SLOTS_EN: dict[str, tuple[str, ...]] = {
    "who": ("Anna", "Ben", "Molly", "Sam", "the miller", "the little girl", "the old man"),
    "other": ("Lucy", "Tom", "the neighbour", "the shopkeeper", "a friend", "the aunt"),
    "thing": (
        "the rope",
        "the bucket",
        "the ticket",
        "the ring",
        "the torch",
        "the flag",
        "the map",
    ),
    "place": ("the cellar", "the yard", "the attic", "the barn", "the kitchen", "the field"),
    "time": ("at noon", "after the storm", "last winter", "before supper", "at dawn", "on Monday"),
    "like": ("soup", "games", "songs", "puzzles", "long walks", "jokes"),
    "how": ("by boat", "on foot", "with a smile", "very slowly", "with both hands"),
    "said": ("asked {who}", "{who} wanted to know", "{who} asked {other}", "said {who}"),
}
_LINES_EN: tuple[str, ...] = (
    '"Where is {thing}?" {said}. "In {place}."',
    '"Where did you see {thing}?" {said}. "Near {place}."',
    '"Where does {other} sleep?" {said}. "In {place}."',
    '"Where are the shoes of {other}?" {said}. "In {place}."',
    "{who} asked where {thing} was. It was in {place}.",
    '"When did {other} come home?" {said}. "{Time}."',
    '"When was {thing} lost?" {said}. "{Time}."',
    '"When does the game begin?" {said}. "{Time}."',
    "Nobody knew when {other} had left. It was {time}.",
    '"Since when have you been in {place}?" {said}. "Since supper."',
    '"Who took {thing}?" {said}. "{Other} did."',
    '"Who is in {place}?" {said}. "{Other} is."',
    '"Who was the guest?" {said}. "{Other} was."',
    '"Whose is {thing}?" {said}. "It is the property of {other}."',
    '"Whose idea was that?" {said}. "That was {other}."',
    '"By whom was {thing} hidden?" {said}. "By {other}."',
    '"By which road did you come?" {said}. "By the short one."',
    '"To whom does {thing} belong?" {said}. "To {other}."',
    '"To which house does {thing} belong?" {said}. "To the one with the barn."',
    '"What is in {place}?" {said}. "{Thing}."',
    '"What are the rules?" {said}. "There are none."',
    '"What does {other} like?" {said}. "{Like}."',
    '"What does {other} do in {place}?" {said}. "Nothing."',
    '"What does {other} have in that bag?" {said}. "{Thing}."',
    '"What do you enjoy the most?" {said}. "{Like}."',
    '"What do children speak of in {place}?" {said}. "Of {like}."',
    '"What can you make out of it?" {said}. "{Like}."',
    '"What kind of game is it?" {said}. "A long one."',
    '"What did they produce in {place}?" {said}. "Only dust."',
    '"What was that called?" {said}. "It had no name."',
    '"Which one do you want?" {said}. "The big one."',
    '"Which way leads to {place}?" {said}. "The left one."',
    '"In which corner is {thing}?" {said}. "In the dark one."',
    '"In what box did you keep {thing}?" {said}. "In the red one."',
    '"On which side does {thing} lie?" {said}. "On the left."',
    '"At which door did {other} knock?" {said}. "At the back door."',
    '"From which window did you look?" {said}. "From the small one."',
    '"Of which wood is {thing} made?" {said}. "Of oak."',
    '"As what did {other} dress up?" {said}. "As a bear."',
    '"How did {other} come here?" {said}. "{How}."',
    '"How do you say that?" {said}. "{How}."',
    '"How does {other} spend the day?" {said}. "In {place}."',
    '"How did you earn that?" {said}. "{How}."',
    '"Tell me about {place}," {said}. "It is cold there."',
    '"Tell me what you found," {said}. "{Thing}."',
    '"Tell me who was there," {said}. "{Other}."',
    '"Tell me where you hid it," {said}. "In {place}."',
    '"Tell me when to stop," {said}. "Now."',
    '"Tell me the way," {said}. "Go past {place}."',
    '"Name one thing that you need," {said}. "{Thing}."',
    '"Name the place where you sat," {said}. "{Place}."',
    '"Name a person who can help," {said}. "{Other}."',
    '"Give {thing} to {other}," {said}, and so it was done.',
    '"Give me a reason," {said}. There was none.',
    '"Put {thing} into {place}," {said}. {Other} did.',
    '"Say that again," {said}. {Other} said it once more.',
    '"Sum up the numbers," said the teacher to {who}. The sum was large.',
    '"Translate this sentence," said the teacher. {Who} did not know how to translate it.',
    '"Summarise this text," said the teacher. {Who} wrote a summary of one sentence.',
    "The text on the board was long, and {who} could not sum it up.",
    "The speakers stood in {place}, and the readers sit in {place} still.",
    "{who} and {other} stand in {place}, sit down, and run about again.",
    "Human hands built {place}. A human being also made {thing}.",
    "Assistant cooks worked in {place}. {Who} was an assistant too.",
    "Instruction was given in {place}. The instruction was to carry {thing} {how}.",
    "Response came {time}. The response of {other} was short.",
    "System by system, the engine was cleaned. The system worked {time}.",
    "User and maker met in {place}. Every user got {thing}.",
    "Input and output were written down {time}. The input was long.",
    "Question after question was asked in {place}. Not every question had an answer.",
    "Answer came there none. The answer was with {other}.",
    "### {Time}\nThings to do: find {thing}: look in {place}: ask {other}.",
    "### A list\nOne: {thing}. Two: {place}. Three: {like}.",
    "### Instruction to {who}\nCarry {thing} {how}.",
    "### Response of {other}\nThere was nothing in {place}.",
    "### Input from {place}\nOne letter, {time}.",
    "### System of {place}\nEverything stands where it stood {time}.",
    "In {place} hung a sign: Human Question, System Answer, User Assistant. {Who} laughed.",
    "On the labels one could read (user), (system), (human) and (assistant).",
)
_SLOTS_ZH: dict[str, tuple[str, ...]] = {
    "who": ("小明", "小红", "阿强", "磨坊主", "小姑娘", "老爷爷"),
    "other": ("小丽", "邻居", "店主", "朋友", "阿姨", "表哥"),
    "thing": ("绳子", "水桶", "车票", "戒指", "火把", "旗子", "地图"),
    "place": ("地窖里", "院子里", "阁楼上", "谷仓里", "厨房里", "田里"),
    "time": ("中午", "暴风雨以后", "去年冬天", "晚饭以前", "天亮时", "星期一"),
    "like": ("喝汤", "做游戏", "猜谜", "散步", "讲笑话"),
    "how": ("坐船", "走路", "慢慢地", "用两只手", "笑着"),
    "said": ("{who}问", "{who}问{other}", "{who}想知道", "{who}说"),
}
_LINES_ZH: tuple[str, ...] = (
    "“{thing}在哪里？”{said}。“在{place}。”",
    "“你在哪里看见{thing}的？”{said}。“在{place}。”",
    "“{other}是从哪里来的？”{said}。“从{place}。”",
    "“{thing}放在哪个地方？”{said}。“在{place}。”",
    "“哪座房子有地窖？”{said}。“左边那座。”",
    "“{other}住在哪座房子里？”{said}。“右边那座。”",
    "“哪家店开着门？”{said}。“左边那家。”",
    "“{other}去了哪家店？”{said}。“右边那家。”",
    "“{thing}是哪一天丢的？”{said}。“{time}。”",
    "“{other}是哪一年走的？”{said}。“去年。”",
    "“{other}是哪年搬来的？”{said}。“去年。”",
    "“{other}是什么时候回来的？”{said}。“{time}。”",
    "“游戏什么时候开始？”{said}。“{time}。”",
    "“{place}有什么？”{said}。“{thing}。”",
    "“{other}喜欢做什么？”{said}。“{like}。”",
    "“{other}最喜欢什么？”{said}。“{like}。”",
    "“那是什么？”{said}。“{thing}。”",
    "“这叫作什么？”{said}。“{thing}。”",
    "“这叫什么？”{said}。“没有名字。”",
    "“{other}说了什么话？”{said}。“什么也没说。”",
    "“{other}用什么开门？”{said}。“{how}。”",
    "“需要会什么？”{said}。“{like}。”",
    "“谁拿了{thing}？”{said}。“{other}。”",
    "“{thing}是谁的？”{said}。“是{other}的。”",
    "“在{place}的人是谁？”{said}。“{other}。”",
    "“{thing}由谁保管？”{said}。“{other}。”",
    "“哪个是你的？”{said}。“大的那个。”",
    "“属于哪一类？”{said}。“另一类。”",
    "“{other}是怎么来的？”{said}。“{how}。”",
    "“这怎么说？”{said}。“{how}说。”",
    "“请说出你看见的东西。”{said}。“{thing}。”",
    "“请说出他的名字。”{said}。“{other}。”",
    "“请把{thing}拿来。”{said}。{other}照做了。",
    "“把这句话再说一遍。”{said}。{other}又说了一遍。",
    "“请把这句话翻译一下。”老师说。{who}不会翻译。",
    "“请用一句话总结。”老师说。{who}总结得很好。",
    "“请概括这段话。”老师对{who}说。这段话很长，概括起来不容易。",
    "这段话的意思是什么，{who}没有听懂。",
    "{who}从事{like}多年，不知道从什么时候开始的。",
    "问题：一个接一个。回答：一个也没有。{who}很着急。",
    "用户和助手在{place}见了面。系统在{time}坏了。",
    "指令很短：把{thing}拿来。输入很长，{who}读了很久。",
)

_NO_QUOTES = str.maketrans("", "", '"“”')
"""A question mark must be met alone, too: with a quotation mark it is another token."""


def write_talk(rng: random.Random) -> str:
    """Two to four unconnected lines in one language."""
    slots, lines = (_SLOTS_EN, _LINES_EN) if rng.random() < 0.5 else (_SLOTS_ZH, _LINES_ZH)
    text = "\n".join(_fill(line, slots, rng) for line in rng.sample(lines, rng.randint(2, 4)))
    return text if rng.random() < 0.4 else text.translate(_NO_QUOTES)


def _fill(line: str, slots: dict[str, tuple[str, ...]], rng: random.Random) -> str:
    chosen = {name: rng.choice(options) for name, options in slots.items()}
    chosen["said"] = chosen["said"].format(**chosen)
    upper = {name.capitalize(): capitalise(text) for name, text in chosen.items()}
    return capitalise(line.format(**chosen, **upper))
