"""How ours may differ from a template's generation-tagged twin, and why ours is right.

The rule that holds each to the letter is in `twins.py`; `docs/templates.md` says where
each occurs.
"""

EXCEPTIONS = {
    "line break": (
        "换行",
        "The twin also trains the line break behind the stop token. Generation has stopped by then:"
        " nothing that is trained there can ever be produced.",
        "孪生模板还训练停止词元后面的换行。生成到停止词元就结束了，后面训练的内容永远不会被生成。",
    ),
    "end of text": (
        "文末词元",
        "Phi-3 writes `<|endoftext|>` behind the stop token of the very last answer, and the twin"
        " trains it. The model stops at `<|end|>`, in every turn.",
        "Phi-3 在最后一个回答的停止词元之后写 `<|endoftext|>`，孪生模板训练它；"
        "而模型每一轮都停在 `<|end|>`。",
    ),
    "cue": (
        "引出部分",
        "The twin also trains the cue with which the served prompt ends. It is given when the model"
        " is served, never produced.",
        "孪生模板还训练提示末尾引出回答的部分。推理时那是给定的，不由模型生成。",
    ),
    "history": (
        "历史",
        "The twin trains an earlier answer as later prompts show it: without its thinking, or ended"
        " by another token. Ours is trained in a context of its own, as it is produced when served:"
        " it is what the twin trains for the same conversation cut behind that answer.",
        "孪生模板按“历史”的样子训练较早的回答（去掉思考，或换了结束词元）。我们让它在自己的上文里"
        "按推理时的样子训练：与孪生模板对截到这一轮为止的同一对话所训练的相同。",
    ),
    "no stop": (
        "缺停止词元",
        "DiffusionGemma ends a turn that calls a tool with `<|tool_response>`, behind which serving"
        " puts the result. The twin does not train that token; ours does, or the model would not"
        " learn to stop there.",
        "DiffusionGemma 以 `<|tool_response>` 结束调用工具的一轮，推理时结果接在它后面。"
        "孪生模板不训练这个词元；我们训练它，否则模型学不会停在那里。",
    ),
    "border": (
        "边界",
        "The same text in other tokens: tokenized as a whole, the end of the prompt and the"
        " beginning of the answer are one token (two line breaks). Serving cuts there and never"
        " sends that token, so the model has to produce what ours trains.",
        "文字相同，词元不同：整体分词时，提示的结尾和回答的开头合成一个词元（两个换行）。"
        "推理时在那里切开，从不发送那个词元，所以模型要写出的正是我们训练的。",
    ),
    "opened thinking": (
        "已打开的思考",
        "The served prompt ends by opening the thinking. The twin trains the answer behind another"
        " prompt, which serving never sends; ours goes on from the one it sends: the thought, if"
        " there is one, its end, and the same answer.",
        "推理时的提示以打开思考结尾。孪生模板把回答接在另一个从不会被发送的提示之后；"
        "我们接着真正发送的提示写：思考（如果有）、思考的结束，然后是同样的回答。",
    ),
    "arguments as text": (
        "文本参数",
        "The row gives the arguments of a call as a string of JSON, and the twin writes that string"
        " as JSON once more, or fails. Ours reads it and trains the same as for an object.",
        "数据行里工具调用的参数是 JSON 字符串，孪生模板把它再编码一次，或者出错。"
        "我们先解析，与给出对象时训练的相同。",
    ),
    "no calls": (
        "没有调用",
        "The template cannot write tool calls. The twin fails, or trains an answer without the"
        " call, often an empty one; ours refuses the row.",
        "模板写不出工具调用。孪生模板出错，或训练一个没有调用（常常是空）的回答；我们拒绝这一行。",
    ),
    "typed parts": (
        "分段内容",
        "The template wants content as a list of typed parts, and shows no plain text. The twin"
        " trains empty answers; ours refuses the template.",
        "模板只接受分段的内容，不显示纯文本。孪生模板训练空回答；我们拒绝这个模板。",
    ),
    "closed thinking": (
        "已关闭的思考",
        "The served prompt has closed the thinking already, and the row has a thought. The twin"
        " trains it behind a prompt that serving never sends; ours refuses the row.",
        "推理时的提示已经关闭思考，而这一行带有思考。孪生模板把它接在从不发送的提示之后；"
        "我们拒绝这一行。",
    ),
    "moved text": (
        "移位的文字",
        "The template writes the text of a calling turn behind the tool's result, and ends the turn"
        " there or not depending on what follows. So a later prompt is not how the conversation"
        " goes on, and ours refuses the row.",
        "模板把带调用一轮的文字写到工具结果之后，那一轮是否结束又取决于后文，"
        "因此之后的提示与完整对话接不上；我们拒绝这一行。",
    ),
    "second call": (
        "第二次调用",
        "DeepSeek-V3's template opens a calling turn only once in a conversation (a flag that is"
        " never reset). The twin trains a second one without its beginning; ours refuses the row.",
        "DeepSeek-V3 的模板在一段对话里只会打开一次调用的那一轮（一个从不复位的标志）。"
        "孪生模板训练缺了开头的第二次调用；我们拒绝这一行。",
    ),
    "both refuse": (
        "双方拒绝",
        "The template refuses the conversation, and the twin fails, too.",
        "模板拒绝这种对话，孪生模板也出错。",
    ),
}
"""By name: its name in Chinese; the difference and its reason, in English and in Chinese."""
