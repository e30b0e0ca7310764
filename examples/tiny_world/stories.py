"""Little stories about nobody in the world, and pairs of sentences that say the same in both
languages.

The stories make the base model a model of text rather than a list of facts; the pairs let it meet
translation.
"""

import random
from collections.abc import Sequence

from .words import WORDS

_SLOTS_EN: dict[str, tuple[str, ...]] = {
    "who": (
        "Anna",
        "Ben",
        "Molly",
        "Sam",
        "Grandmother",
        "Old Peter",
        "the farmer's child",
        "a young sailor",
    ),
    "friend": (
        "Lucy",
        "Tom",
        "a stray cat",
        "a small brown dog",
        "the neighbour",
        "a tired traveller",
    ),
    "place": (
        "the village",
        "the beach",
        "the forest",
        "the market",
        "a small house",
        "the river",
        "the old mill",
    ),
    "weather": (
        "It rained all day",
        "The sun was warm",
        "A cold wind blew",
        "Snow lay on the hills",
        "It was foggy",
    ),
    "time": (
        "One morning",
        "Late in the evening",
        "On a Sunday",
        "Long ago",
        "In the spring",
        "After school",
    ),
    "thing": (
        "a shiny stone",
        "an old coin",
        "a lost letter",
        "a blue feather",
        "a wooden box",
        "a tiny drum",
    ),
    "feel": ("happy", "surprised", "a little afraid", "proud", "very curious", "calm"),
    "act": (
        "sang a song",
        "built a fire",
        "told a story",
        "shared some soup",
        "looked at the stars",
        "took a nap",
    ),
    "end": (
        "In the end they walked home together.",
        "From then on they were good friends.",
        "Nobody in the village ever forgot that day.",
        "That night everyone slept well.",
        "And so the day came to an end.",
    ),
}
_PLANS_EN = (
    "{time} {who} went to {place}. {weather}. There {who} found {thing} and felt {feel}. "
    "{Friend} came by. Together they {act}. {end}",
    "{weather}, and {who} stayed in {place}. {Friend} knocked at the door and brought {thing}. "
    "They {act}, and both felt {feel}. {end}",
    "{Who} lived near {place}. {time} {friend} lost {thing}. {who} looked for it everywhere and "
    "was {feel} when it turned up. Then they {act}. {end}",
    "{time} {friend} asked {who} for help. They had to carry {thing} to {place}. {weather}, but "
    "they {act} on the way. {Who} felt {feel}. {end}",
    '"Look at this," said {friend}, and showed {thing}. {Who} was {feel}. {time} they took it to '
    "{place} and {act}. {weather}. {end}",
)
_SLOTS_ZH: dict[str, tuple[str, ...]] = {
    "who": ("小明", "小红", "阿强", "老奶奶", "一个牧童", "村里的孩子", "一位年轻的水手"),
    "friend": ("小丽", "一只流浪猫", "一只小黄狗", "邻居", "一个疲倦的旅人", "老师傅"),
    "place": ("村子里", "海边", "森林里", "集市上", "小屋里", "河边", "老磨坊"),
    "weather": ("雨下了一整天", "阳光很暖和", "冷风吹个不停", "山上积着雪", "雾很大"),
    "time": ("有一天早上", "傍晚的时候", "星期天", "很久以前", "春天里", "放学以后"),
    "thing": (
        "一块闪亮的石头",
        "一枚旧硬币",
        "一封丢失的信",
        "一根蓝色的羽毛",
        "一个木盒子",
        "一面小鼓",
    ),
    "feel": ("高兴", "惊讶", "有点害怕", "自豪", "好奇", "平静"),
    "act": ("唱了一首歌", "生了一堆火", "讲了一个故事", "分着喝了汤", "看了星星", "睡了一会儿"),
    "end": (
        "最后他们一起走回了家。",
        "从那以后他们成了好朋友。",
        "村里没有人忘记那一天。",
        "那天晚上大家都睡得很香。",
        "这一天就这样过去了。",
    ),
}
_PLANS_ZH = (
    "{time}，{who}来到{place}。{weather}。{who}发现了{thing}，心里很{feel}。"
    "{friend}走了过来，他们一起{act}。{end}",
    "{weather}，{who}待在{place}。{friend}敲了敲门，带来了{thing}。"
    "他们{act}，都觉得很{feel}。{end}",
    "{who}住得离{place}不远。{time}，{friend}丢了{thing}。"
    "{who}到处寻找，找到的时候很{feel}。后来他们{act}。{end}",
    "{time}，{friend}请{who}帮忙。他们要把{thing}送到{place}。"
    "{weather}，不过他们在路上{act}。{who}很{feel}。{end}",
    "“看看这个。”{friend}说着拿出{thing}。{who}很{feel}。"
    "{time}，他们把它带到{place}，{act}。{weather}。{end}",
)

PARALLEL: tuple[tuple[str, str], ...] = (
    ("The {0} is next to the {1}.", "{0}在{1}旁边。"),
    ("I can see the {0} and the {1}.", "我能看见{0}和{1}。"),
    ("We talked about the {0}, not about the {1}.", "我们谈的是{0}，不是{1}。"),
    ("My friend likes the {0} more than the {1}.", "比起{1}，我的朋友更喜欢{0}。"),
    ("The child drew the {0} under the {1}.", "孩子把{0}画在{1}下面。"),
    ("First came the {0}, then the {1}.", "先来的是{0}，然后是{1}。"),
)
"""The same sentence in English and Chinese, around two words of the world."""


def write_story(rng: random.Random) -> str:
    """Five or six sentences in one language, about nobody with a fact."""
    slots, plans = (_SLOTS_EN, _PLANS_EN) if rng.random() < 0.5 else (_SLOTS_ZH, _PLANS_ZH)
    chosen = {name: rng.choice(options) for name, options in slots.items()}
    upper = {name.capitalize(): capitalise(text) for name, text in chosen.items()}
    return ". ".join(capitalise(s) for s in rng.choice(plans).format(**chosen, **upper).split(". "))


def write_parallel(rng: random.Random) -> str:
    """A handful of sentences, each followed by its translation, always in one direction."""
    english_first, lines = rng.random() < 0.5, []
    for _ in range(rng.randint(2, 5)):
        pair = parallel_sentence(rng.choice(PARALLEL), rng.sample(WORDS, 2))
        lines.append(" ".join(pair if english_first else reversed(pair)))
    return "\n".join(lines)


def parallel_sentence(frame: tuple[str, str], words: Sequence[tuple[str, str]]) -> tuple[str, str]:
    """One sentence and its translation: the frame filled with two words."""
    return frame[0].format(*(w[0] for w in words)), frame[1].format(*(w[1] for w in words))


def capitalise(sentence: str) -> str:
    """The first letter in upper case, the rest as it is."""
    return sentence[:1].upper() + sentence[1:]
