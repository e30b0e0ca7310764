"""Pools of values and of name parts. Every person, company, book and city made from them is
invented.

`NamePool` deals out names that never repeat: the world, the authors and founders it mentions, and
the control entities all draw from the same pool, so they look alike and are disjoint by
construction.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field


def _split(words: str) -> tuple[str, ...]:
    return tuple(words.split())


_STARTS = _split(
    """
    Bal Cor Dun Esk Fal Gar Hol Ist Jor Kel Lor Mar Nor Orl Pel Quil Ros Sel Tor Ul Ven Wes Yar Zel
    """
)

_FIRST = _split(
    """
    Ada Bruno Clara Dario Edith Felix Greta Hugo Ines Jonas Kira Leo Mina Nils Olga Pavel Rosa
    Silas Tessa Ugo Vera Wanda Xenia Yara Zeno Amos Bela Cora Dorian Elsa Finn Gita Hana Ivo June
    Kaspar Lena Marek Nora Otis
    """
)
_LAST = tuple(a + b for a in _STARTS for b in ("brin", "dahl", "gren", "kett", "lock"))
_COMPANY = tuple(a + b for a in _STARTS for b in ("atek", "enix", "iva", "omar", "utra"))
_COMPANY_TAIL = _split("Works Group Labs Trading Brothers")
_CITY = tuple(a + b for a in _STARTS for b in ("haven", "mere", "stad", "wick", "dale"))
_TITLE_A = _split(
    """
    Silent Hidden Golden Broken Distant Burning Frozen Secret Wandering Forgotten Painted Hollow
    Restless Patient Scarlet Crooked Drowned Gentle Stubborn Invisible
    """
)
_TITLE_B = _split(
    """
    Harbour Lantern Orchard Letter Staircase Compass Lighthouse Violin Garden Island Clock Tower
    Valley Stranger Promise Shadow Voyage Library Bell Feather
    """
)

_SURNAME_ZH = "沈陆顾苏程许谢傅叶方石崔段雷侯贺龚邵万钱汤尹黎易武乔赖文庞樊"
_GIVEN_ZH = ("若思子雨景书云嘉明清晓知远星念初以慕亦安", "澜源宁涵川瑶岚彤舟棠航言然禾真诚轩苒遥歌")
_CITY_ZH = tuple(a + b + "市" for a in "霞澄岚墨芷雁鹭橘榆枫柏琴瑶蓝" for b in "溪川港湾渡岭泉")
_COMPANY_ZH = tuple(a + b for a in "恒瑞宏鼎盛昌隆泰裕丰益祥" for b in "禾星源达讯维锦拓凌翔")
_COMPANY_TAIL_ZH = _split("科技 集团 工坊 实业 商行")
_TITLE_A_ZH = _split(
    """
    寂静 隐秘 金色 破碎 遥远 燃烧 冰封 迷途 流浪 遗忘 彩绘 空旷 不安 耐心 深红 弯曲 沉没 温柔 倔强
    透明
    """
)
_TITLE_B_ZH = _split(
    """
    港口 灯笼 果园 来信 阶梯 罗盘 灯塔 提琴 花园 岛屿 时钟 高塔 山谷 旅人 诺言 影子 航程 书阁 铜铃
    羽毛
    """
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Values:
    """What the attributes of one language's people, companies and books are drawn from."""

    cities: tuple[str, ...]
    jobs: tuple[str, ...]
    hobbies: tuple[str, ...]
    products: tuple[str, ...]
    genres: tuple[str, ...]


VALUES = {
    "en": Values(
        cities=_CITY,
        jobs=_split(
            """
            baker carpenter dentist electrician farmer gardener judge librarian mechanic nurse
            painter plumber sailor tailor teacher translator surgeon pilot potter butcher
            journalist architect engineer actor optician accountant barber blacksmith chemist
            composer detective diver firefighter florist geologist historian lawyer mason miner
            photographer pharmacist sculptor shepherd singer veterinarian weaver zookeeper
            beekeeper
            """
        ),
        hobbies=_split(
            """
            chess fishing knitting cycling swimming archery gardening rowing dancing sailing hiking
            pottery origami skating juggling birdwatching calligraphy stargazing weightlifting
            baking fencing yoga climbing karate running surfing skiing wrestling camping singing
            cooking embroidery boxing bowling badminton tennis volleyball drumming woodcarving
            puppetry beachcombing sketching poetry crosswords dominoes billiards snorkelling
            gymnastics
            """
        ),
        products=_split(
            """
            pianos clocks bricks engines boats tents lenses guitars batteries ropes ladders
            tractors helmets sofas stoves cameras robots toys tiles violins pumps elevators
            keyboards microscopes telescopes needles barrels bells compasses drills fans gears
            hammers jars kettles locks magnets nets paints radios
            """
        ),
        genres=_split(
            """
            fantasy romance horror satire tragedy comedy biography memoir mystery adventure
            travelogue melodrama thriller folklore allegory farce mythology philosophy noir crime
            espionage western gothic reportage
            """
        ),
    ),
    "zh": Values(
        cities=_CITY_ZH,
        jobs=_split(
            """
            面点师 木匠 牙医 电工 农民 园丁 法官 图书管理员 机修工 护士 画家 管道工 水手 裁缝 教师
            翻译 外科医生 飞行员 陶艺师 屠夫 记者 建筑师 工程师 演员 验光师 会计 理发师 铁匠 化学家
            作曲家 侦探 潜水员 消防员 花艺师 地质学家 历史学家 律师 石匠 矿工 摄影师 药剂师 雕刻家
            牧羊人 歌手 兽医 织布工 饲养员 养蜂人
            """
        ),
        hobbies=_split(
            """
            下象棋 钓鱼 编织 骑行 游泳 射箭 种花 划船 跳舞 航海 徒步 制陶 折纸 滑冰 杂耍 观鸟 书法
            观星 举重 烘焙 击剑 瑜伽 攀岩 空手道 跑步 冲浪 滑雪 摔跤 露营 唱歌 烹饪 刺绣 拳击
            保龄球 羽毛球 网球 排球 打鼓 木雕 皮影戏 赶海 素描 写诗 填字游戏 多米诺骨牌 台球 浮潜
            体操
            """
        ),
        products=_split(
            """
            钢琴 座钟 砖块 发动机 小艇 帐篷 镜片 吉他 电池 绳索 梯子 拖拉机 头盔 沙发 炉灶 相机
            机器人 玩具 瓷砖 小提琴 水泵 电梯 键盘 显微镜 望远镜 缝衣针 木桶 门铃 指南针 电钻 电扇
            齿轮 锤子 陶罐 水壶 门锁 磁铁 渔网 油漆 收音机
            """
        ),
        genres=_split(
            """
            奇幻 言情 恐怖 讽刺 悲剧 喜剧 传记 回忆录 悬疑 冒险 游记 情节剧 惊悚 民间故事 寓言 闹剧
            神话 哲学 黑色 犯罪 谍战 西部 哥特 纪实
            """
        ),
    ),
}


@dataclass(kw_only=True, slots=True)
class NamePool:
    """Deals out invented names of one language; no name is dealt twice."""

    language: str
    rng: random.Random
    _dealt: set[str] = field(default_factory=set)

    def person(self) -> str:
        """A full name: English first and last, Chinese always three characters."""
        if self.language == "en":
            return self._fresh(lambda: f"{self._one(_FIRST)} {self._one(_LAST)}")
        return self._fresh(
            lambda: self._one(_SURNAME_ZH) + self._one(_GIVEN_ZH[0]) + self._one(_GIVEN_ZH[1])
        )

    def company(self) -> str:
        """An invented word and a kind of business that says nothing about the products."""
        if self.language == "en":
            return self._fresh(lambda: f"{self._one(_COMPANY)} {self._one(_COMPANY_TAIL)}")
        return self._fresh(lambda: self._one(_COMPANY_ZH) + self._one(_COMPANY_TAIL_ZH))

    def book(self) -> str:
        """A title: an adjective and a noun."""
        if self.language == "en":
            return self._fresh(lambda: f"The {self._one(_TITLE_A)} {self._one(_TITLE_B)}")
        return self._fresh(lambda: f"《{self._one(_TITLE_A_ZH)}的{self._one(_TITLE_B_ZH)}》")

    def _one(self, pool: Sequence[str]) -> str:
        return self.rng.choice(pool)

    def _fresh(self, make: Callable[[], str]) -> str:
        while (name := make()) in self._dealt:
            pass
        self._dealt.add(name)
        return name
