"""Everyday words in English and Chinese, and the countries: the real part of the world.

Every Chinese word has two characters or more and none occurs inside another value of the world,
so "this held-out word is nowhere in the training pairs" can be tested by searching for it.
Countries have one undisputed capital and one clear main language; Spain and Portugal are left out
because their Chinese names are part of the names of languages spoken elsewhere.
"""

from dataclasses import dataclass

_WORDS = """
apple=苹果 banana=香蕉 orange=橙子 pear=梨子 peach=桃子 lemon=柠檬 cherry=樱桃 strawberry=草莓
watermelon=西瓜 tomato=番茄 potato=土豆 carrot=胡萝卜 onion=洋葱 cabbage=白菜 mushroom=蘑菇
pumpkin=南瓜 cucumber=黄瓜 bread=面包 butter=黄油 cheese=奶酪 milk=牛奶 honey=蜂蜜 egg=鸡蛋
noodle=面条 dumpling=饺子 cake=蛋糕 biscuit=饼干 chocolate=巧克力 coffee=咖啡 juice=果汁
rabbit=兔子 monkey=猴子 tiger=老虎 lion=狮子 elephant=大象 panda=熊猫 fox=狐狸 sheep=绵羊
goat=山羊 duck=鸭子 parrot=鹦鹉 eagle=老鹰 sparrow=麻雀 butterfly=蝴蝶 bee=蜜蜂 ant=蚂蚁 frog=青蛙
turtle=乌龟 whale=鲸鱼 dolphin=海豚 shark=鲨鱼 camel=骆驼 table=桌子 chair=椅子 window=窗户
wall=墙壁 roof=屋顶 lamp=台灯 mirror=镜子 curtain=窗帘 carpet=地毯 pillow=枕头 blanket=毯子
towel=毛巾 soap=肥皂 brush=刷子 bottle=瓶子 cup=杯子 spoon=勺子 fork=叉子 pencil=铅笔 paper=纸张
umbrella=雨伞 hat=帽子 glove=手套 scarf=围巾 shoe=鞋子 coat=外套 shirt=衬衫 bicycle=自行车
train=火车 airplane=飞机 ship=轮船 kite=风筝 key=钥匙 candle=蜡烛 basket=篮子 suitcase=箱子
moon=月亮 cloud=云朵
"""
WORDS: tuple[tuple[str, str], ...] = tuple(
    (english, chinese) for english, _, chinese in (pair.partition("=") for pair in _WORDS.split())
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Country:
    """A real country, in both languages."""

    name: tuple[str, str]
    """English, Chinese; so are the three below."""
    capital: tuple[str, str]
    continent: tuple[str, str]
    language: tuple[str, str]


_CONTINENTS = {
    "EU": ("Europe", "欧洲"),
    "AS": ("Asia", "亚洲"),
    "AF": ("Africa", "非洲"),
    "NA": ("North America", "北美洲"),
    "SA": ("South America", "南美洲"),
    "OC": ("Oceania", "大洋洲"),
}

_TABLE = """
France|法国|Paris|巴黎|EU|French|法语
Germany|德国|Berlin|柏林|EU|German|德语
Austria|奥地利|Vienna|维也纳|EU|German|德语
Italy|意大利|Rome|罗马|EU|Italian|意大利语
Poland|波兰|Warsaw|华沙|EU|Polish|波兰语
Greece|希腊|Athens|雅典|EU|Greek|希腊语
Norway|挪威|Oslo|奥斯陆|EU|Norwegian|挪威语
Sweden|瑞典|Stockholm|斯德哥尔摩|EU|Swedish|瑞典语
Denmark|丹麦|Copenhagen|哥本哈根|EU|Danish|丹麦语
Iceland|冰岛|Reykjavik|雷克雅未克|EU|Icelandic|冰岛语
Hungary|匈牙利|Budapest|布达佩斯|EU|Hungarian|匈牙利语
Romania|罗马尼亚|Bucharest|布加勒斯特|EU|Romanian|罗马尼亚语
Bulgaria|保加利亚|Sofia|索非亚|EU|Bulgarian|保加利亚语
Croatia|克罗地亚|Zagreb|萨格勒布|EU|Croatian|克罗地亚语
Albania|阿尔巴尼亚|Tirana|地拉那|EU|Albanian|阿尔巴尼亚语
Ukraine|乌克兰|Kyiv|基辅|EU|Ukrainian|乌克兰语
Lithuania|立陶宛|Vilnius|维尔纽斯|EU|Lithuanian|立陶宛语
Latvia|拉脱维亚|Riga|里加|EU|Latvian|拉脱维亚语
Estonia|爱沙尼亚|Tallinn|塔林|EU|Estonian|爱沙尼亚语
Slovakia|斯洛伐克|Bratislava|布拉迪斯拉发|EU|Slovak|斯洛伐克语
Japan|日本|Tokyo|东京|AS|Japanese|日语
South Korea|韩国|Seoul|首尔|AS|Korean|韩语
Thailand|泰国|Bangkok|曼谷|AS|Thai|泰语
Vietnam|越南|Hanoi|河内|AS|Vietnamese|越南语
Cambodia|柬埔寨|Phnom Penh|金边|AS|Khmer|高棉语
Mongolia|蒙古国|Ulaanbaatar|乌兰巴托|AS|Mongolian|蒙古语
Nepal|尼泊尔|Kathmandu|加德满都|AS|Nepali|尼泊尔语
Bangladesh|孟加拉国|Dhaka|达卡|AS|Bengali|孟加拉语
Iran|伊朗|Tehran|德黑兰|AS|Persian|波斯语
Saudi Arabia|沙特阿拉伯|Riyadh|利雅得|AS|Arabic|阿拉伯语
Jordan|约旦|Amman|安曼|AS|Arabic|阿拉伯语
Qatar|卡塔尔|Doha|多哈|AS|Arabic|阿拉伯语
Egypt|埃及|Cairo|开罗|AF|Arabic|阿拉伯语
Tunisia|突尼斯共和国|Tunis|突尼斯城|AF|Arabic|阿拉伯语
Ethiopia|埃塞俄比亚|Addis Ababa|亚的斯亚贝巴|AF|Amharic|阿姆哈拉语
Senegal|塞内加尔|Dakar|达喀尔|AF|French|法语
Gabon|加蓬|Libreville|利伯维尔|AF|French|法语
Ghana|加纳|Accra|阿克拉|AF|English|英语
Zambia|赞比亚|Lusaka|卢萨卡|AF|English|英语
Angola|安哥拉|Luanda|罗安达|AF|Portuguese|葡萄牙语
Mozambique|莫桑比克|Maputo|马普托|AF|Portuguese|葡萄牙语
Mexico|墨西哥|Mexico City|墨西哥城|NA|Spanish|西班牙语
Cuba|古巴|Havana|哈瓦那|NA|Spanish|西班牙语
Costa Rica|哥斯达黎加|San José|圣何塞|NA|Spanish|西班牙语
Jamaica|牙买加|Kingston|金斯敦|NA|English|英语
Brazil|巴西|Brasília|巴西利亚|SA|Portuguese|葡萄牙语
Argentina|阿根廷|Buenos Aires|布宜诺斯艾利斯|SA|Spanish|西班牙语
Chile|智利|Santiago|圣地亚哥|SA|Spanish|西班牙语
Colombia|哥伦比亚|Bogotá|波哥大|SA|Spanish|西班牙语
Uruguay|乌拉圭|Montevideo|蒙得维的亚|SA|Spanish|西班牙语
Australia|澳大利亚|Canberra|堪培拉|OC|English|英语
New Zealand|新西兰|Wellington|惠灵顿|OC|English|英语
"""


def _read_country(line: str) -> Country:
    name, name_zh, capital, capital_zh, continent, language, language_zh = line.split("|")
    return Country(
        name=(name, name_zh),
        capital=(capital, capital_zh),
        continent=_CONTINENTS[continent],
        language=(language, language_zh),
    )


COUNTRIES: tuple[Country, ...] = tuple(map(_read_country, _TABLE.strip().splitlines()))
