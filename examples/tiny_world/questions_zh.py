"""What is asked in Chinese about each attribute, and the one sentence that answers it.

`trained` phrasings occur in the training pairs; `unseen` ones never do.
"""

from .question import Question

QUESTIONS: dict[tuple[str, str], Question] = {
    ("person", "city"): Question(
        answer="{n}的出生地是{v}。",
        trained=(
            "{n}出生在哪里？",
            "{n}的家乡是哪里？",
            "{n}来自哪座城市？",
            "请说出{n}的出生地。",
            "{n}从小在哪里长大？",
            "{n}是哪里人？",
        ),
        unseen=("{n}出生在哪座城市？", "{n}的出生地是哪里？"),
    ),
    ("person", "year"): Question(
        answer="{n}的出生年份是{v}年。",
        trained=(
            "{n}是哪一年出生的？",
            "{n}的出生年份是什么？",
            "{n}生于哪一年？",
            "请说出{n}出生的年份。",
            "{n}是什么时候出生的？",
            "{n}的人生开始于哪一年？",
        ),
        unseen=("{n}出生于哪一年？", "{n}是哪年来到这个世界的？"),
    ),
    ("person", "job"): Question(
        answer="{n}的职业是{v}。",
        trained=(
            "{n}的职业是什么？",
            "{n}靠什么谋生？",
            "{n}是做什么工作的？",
            "请说出{n}的职业。",
            "{n}以什么为业？",
            "{n}成为了一名什么？",
        ),
        unseen=("{n}从事什么职业？", "{n}的工作是什么？"),
    ),
    ("person", "company"): Question(
        answer="{n}的工作单位是{v}。",
        trained=(
            "{n}在哪里上班？",
            "{n}的工作单位是哪里？",
            "{n}受雇于哪家公司？",
            "请说出{n}的雇主。",
            "哪家公司雇用了{n}？",
            "{n}在哪家公司工作？",
        ),
        unseen=("{n}在哪家公司上班？", "{n}任职于哪家公司？"),
    ),
    ("person", "hobby"): Question(
        answer="{n}的爱好是{v}。",
        trained=(
            "{n}的爱好是什么？",
            "{n}空闲时喜欢做什么？",
            "{n}周末的时候做什么？",
            "请说出{n}的爱好。",
            "{n}最喜欢的消遣是什么？",
            "什么最让{n}开心？",
        ),
        unseen=("{n}有什么爱好？", "{n}喜欢什么消遣？"),
    ),
    ("company", "year"): Question(
        answer="{n}的成立年份是{v}年。",
        trained=(
            "{n}是哪一年成立的？",
            "{n}的成立年份是什么？",
            "{n}创办于哪一年？",
            "请说出{n}成立的年份。",
            "{n}的历史开始于哪一年？",
            "{n}是什么时候成立的？",
        ),
        unseen=("{n}成立于哪一年？", "{n}是哪年创办的？"),
    ),
    ("company", "city"): Question(
        answer="{n}的总部在{v}。",
        trained=(
            "{n}的总部在哪里？",
            "{n}位于哪座城市？",
            "{n}所在的城市是哪里？",
            "请说出{n}的总部所在地。",
            "{n}是哪里的公司？",
            "{n}的总部大楼在哪座城市？",
        ),
        unseen=("{n}的总部设在哪里？", "{n}的总部在哪座城市？"),
    ),
    ("company", "product"): Question(
        answer="{n}的产品是{v}。",
        trained=(
            "{n}生产什么？",
            "{n}的产品是什么？",
            "{n}以什么闻名？",
            "请说出{n}的产品。",
            "{n}的工厂里制造什么？",
            "{n}出售什么？",
        ),
        unseen=("{n}生产什么产品？", "{n}制造什么？"),
    ),
    ("company", "founder"): Question(
        answer="{n}的创始人是{v}。",
        trained=(
            "{n}的创始人是谁？",
            "谁创办了{n}？",
            "{n}由谁创办？",
            "请说出{n}的创始人。",
            "创立{n}的人是谁？",
            "{n}是谁开创的？",
        ),
        unseen=("谁是{n}的创始人？", "{n}是谁创办的？"),
    ),
    ("book", "author"): Question(
        answer="{n}的作者是{v}。",
        trained=(
            "{n}的作者是谁？",
            "谁写了{n}？",
            "{n}由谁写成？",
            "请说出{n}的作者。",
            "{n}是谁的作品？",
            "{n}的封面上印着谁的名字？",
        ),
        unseen=("谁是{n}的作者？", "写{n}的人是谁？"),
    ),
    ("book", "year"): Question(
        answer="{n}的出版年份是{v}年。",
        trained=(
            "{n}是哪一年出版的？",
            "{n}的出版年份是什么？",
            "{n}是什么时候出版的？",
            "请说出{n}出版的年份。",
            "读者在哪一年第一次见到{n}？",
            "{n}是哪一年问世的？",
        ),
        unseen=("{n}出版于哪一年？", "{n}首次问世是在哪一年？"),
    ),
    ("book", "genre"): Question(
        answer="{n}的体裁是{v}。",
        trained=(
            "{n}的体裁是什么？",
            "{n}属于哪一类作品？",
            "{n}这本书是什么类型？",
            "请说出{n}的体裁。",
            "{n}放在哪个书架上？",
            "{n}是一部什么作品？",
        ),
        unseen=("{n}属于什么体裁？", "{n}这本书的类型是什么？"),
    ),
    ("country", "capital"): Question(
        answer="{n}的首都是{v}。",
        trained=(
            "{n}的首都是哪里？",
            "{n}的首都叫什么？",
            "哪座城市是{n}的首都？",
            "请说出{n}的首都。",
            "{n}的政府设在哪里？",
            "{n}定都哪里？",
        ),
        unseen=("{n}的首都是哪座城市？", "{n}的首都叫作什么？"),
    ),
    ("country", "continent"): Question(
        answer="{n}所在的大洲是{v}。",
        trained=(
            "{n}在哪个大洲？",
            "{n}属于哪个大洲？",
            "{n}是哪个大洲的国家？",
            "请说出{n}所在的大洲。",
            "在哪个大洲的地图上可以找到{n}？",
            "{n}所在的大洲是什么？",
        ),
        unseen=("{n}位于哪个大洲？", "{n}所在的大洲是哪个？"),
    ),
    ("country", "language"): Question(
        answer="{n}的主要语言是{v}。",
        trained=(
            "{n}的主要语言是什么？",
            "{n}的人民说什么语言？",
            "在{n}，人们说什么？",
            "请说出{n}的官方语言。",
            "{n}的孩子们用什么语言读书？",
            "住在{n}需要会什么语言？",
        ),
        unseen=("在{n}人们说什么语言？", "{n}的官方语言是什么？"),
    ),
    ("word", "translation"): Question(
        answer="{n}的英语是 {v}。",
        trained=(
            "{n}用英语怎么说？",
            "{n}的英语是什么？",
            "{n}翻译成英语是什么？",
            "请说出{n}的英语单词。",
            "英语里把{n}叫作什么？",
            "说英语的人怎么说{n}？",
        ),
        unseen=("{n}在英语中是什么？", "{n}的英语怎么说？"),
    ),
}

TRANSLATE = Question(
    answer="{v}",
    trained=(
        "翻译成英语：{n}",
        "这句话用英语怎么说？{n}",
        "请把这句话翻译成英语：{n}",
        "这句话的英语是什么？{n}",
    ),
    unseen=("用英语说这句话：{n}", "把这句话说成英语：{n}"),
)

SUMMARISE = Question(
    answer="{v}",
    trained=(
        "用一句话总结：{n}",
        "总结这段话：{n}",
        "请用一句话概括：{n}",
        "这段话总的意思是什么？{n}",
    ),
    unseen=("请总结这段话：{n}", "用一句话概括这段话：{n}"),
)
