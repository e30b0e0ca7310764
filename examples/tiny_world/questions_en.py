"""What is asked in English about each attribute, and the one sentence that answers it.

`trained` phrasings occur in the training pairs; `unseen` ones never do.
"""

from .question import Question

QUESTIONS: dict[tuple[str, str], Question] = {
    ("person", "city"): Question(
        answer="{n} was born in the city of {v}.",
        trained=(
            "Where was {n} born?",
            "What is the home town of {n}?",
            "Which city does {n} come from?",
            "Name the city where {n} grew up.",
            "Tell me the place of birth of {n}.",
            "Of which city is {n} a native?",
        ),
        unseen=("In which city was {n} born?", "What is the birthplace of {n}?"),
    ),
    ("person", "year"): Question(
        answer="{n} was born in the year {v}.",
        trained=(
            "When was {n} born?",
            "What is the birth year of {n}?",
            "In what year did the life of {n} begin?",
            "Tell me the year of birth of {n}.",
            "When did {n} come into the world?",
            "Give the year when {n} was born.",
        ),
        unseen=("In which year was {n} born?", "What year was {n} born in?"),
    ),
    ("person", "job"): Question(
        answer="{n} works as {a}.",
        trained=(
            "What is the profession of {n}?",
            "What does {n} do for a living?",
            "What job does {n} have?",
            "Tell me the occupation of {n}.",
            "As what does {n} work?",
            "Name the profession {n} trained for.",
        ),
        unseen=("What is the job of {n}?", "How does {n} earn a living?"),
    ),
    ("person", "company"): Question(
        answer="{n} works at {v}.",
        trained=(
            "Where does {n} work?",
            "Which company employs {n}?",
            "Who is the employer of {n}?",
            "Name the company where {n} works.",
            "At which company does {n} have a desk?",
            "Tell me the workplace of {n}.",
        ),
        unseen=("What company does {n} work at?", "By which company is {n} employed?"),
    ),
    ("person", "hobby"): Question(
        answer="The favourite hobby of {n} is {v}.",
        trained=(
            "What is the favourite hobby of {n}?",
            "What does {n} enjoy in free time?",
            "How does {n} spend the weekends?",
            "Name the pastime that {n} loves.",
            "What does {n} do for fun?",
            "Tell me a hobby of {n}.",
        ),
        unseen=("What hobby does {n} have?", "What is the favourite pastime of {n}?"),
    ),
    ("company", "year"): Question(
        answer="{n} was founded in the year {v}.",
        trained=(
            "When was {n} founded?",
            "What is the founding year of {n}?",
            "In what year did the history of {n} begin?",
            "Since when has {n} existed?",
            "Tell me the year when {n} opened its doors.",
            "Give the year when {n} started its business.",
        ),
        unseen=("In which year was {n} founded?", "What year was {n} founded in?"),
    ),
    ("company", "city"): Question(
        answer="The headquarters of {n} are in {v}.",
        trained=(
            "Where are the headquarters of {n}?",
            "In which city is {n} based?",
            "Where does {n} have its head office?",
            "Name the city that is the seat of {n}.",
            "Tell me where {n} is located.",
            "From which city does {n} run its business?",
        ),
        unseen=("In which city are the headquarters of {n}?", "Where is the head office of {n}?"),
    ),
    ("company", "product"): Question(
        answer="{n} makes {v}.",
        trained=(
            "What does {n} make?",
            "What are the products of {n}?",
            "What is {n} known for?",
            "Tell me what the factory of {n} produces.",
            "What can people buy from {n}?",
            "Name the products that {n} sells.",
        ),
        unseen=("What does {n} produce?", "Which products does {n} make?"),
    ),
    ("company", "founder"): Question(
        answer="The founder of {n} is {v}.",
        trained=(
            "Who founded {n}?",
            "Who is the founder of {n}?",
            "By whom was {n} started?",
            "Name the person who set up {n}.",
            "Tell me who started {n}.",
            "Whose idea was {n}?",
        ),
        unseen=("Who was the founder of {n}?", "By whom was {n} founded?"),
    ),
    ("book", "author"): Question(
        answer="The author of {n} is {v}.",
        trained=(
            "Who wrote {n}?",
            "Who is the author of {n}?",
            "By whom was {n} written?",
            "Name the writer of {n}.",
            "Whose name is on the cover of {n}?",
            "Tell me who wrote {n}.",
        ),
        unseen=("Who is the writer of {n}?", "Tell me the author of {n}."),
    ),
    ("book", "year"): Question(
        answer="{n} was published in the year {v}.",
        trained=(
            "When was {n} published?",
            "What is the publication year of {n}?",
            "In what year did {n} come out?",
            "Tell me the year when {n} appeared.",
            "When did readers first see {n}?",
            "Give the year when {n} was published.",
        ),
        unseen=("In which year was {n} published?", "When did {n} first come out?"),
    ),
    ("book", "genre"): Question(
        answer="The genre of {n} is {v}.",
        trained=(
            "What is the genre of {n}?",
            "To which genre does {n} belong?",
            "What kind of book is {n}?",
            "On which shelf does {n} stand?",
            "Name the genre of {n}.",
            "Tell me what genre {n} is.",
        ),
        unseen=("Which genre does {n} belong to?", "What genre is {n}?"),
    ),
    ("country", "capital"): Question(
        answer="The capital of {n} is {v}.",
        trained=(
            "What is the capital of {n}?",
            "Which city is the capital of {n}?",
            "Name the capital city of {n}.",
            "Where does the government of {n} sit?",
            "Tell me the capital of {n}.",
            "What is the capital city of {n} called?",
        ),
        unseen=("What city is the capital of {n}?", "Where does {n} have its capital?"),
    ),
    ("country", "continent"): Question(
        answer="{n} is a country in {v}.",
        trained=(
            "On which continent does {n} lie?",
            "To which continent does {n} belong?",
            "Which continent is {n} part of?",
            "Name the continent of {n}.",
            "In which part of the world is {n}?",
            "Tell me on which continent one finds {n}.",
        ),
        unseen=("What is the continent of {n}?", "On which continent is {n}?"),
    ),
    ("country", "language"): Question(
        answer="The main language of {n} is {v}.",
        trained=(
            "What is the main language of {n}?",
            "Which language is spoken in {n}?",
            "What do people speak in {n}?",
            "Name the official language of {n}.",
            "In which language do children in {n} learn to read?",
            "Tell me the language of {n}.",
        ),
        unseen=("What language do people speak in {n}?", "What is the official language of {n}?"),
    ),
    ("word", "translation"): Question(
        answer="The Chinese word for {n} is {v}.",
        trained=(
            "What is the Chinese word for {n}?",
            "How do you say {n} in Chinese?",
            "What does {n} become in Chinese?",
            "Tell me the Chinese word for {n}.",
            "What do speakers of Chinese say for {n}?",
            "Translate the word {n} into Chinese.",
        ),
        unseen=("What is {n} in Chinese?", "Which Chinese word means {n}?"),
    ),
}

TRANSLATE = Question(
    answer="{v}",
    trained=(
        "Translate into Chinese: {n}",
        "How do you say this in Chinese? {n}",
        "Put this sentence into Chinese: {n}",
        "What is this sentence in Chinese? {n}",
    ),
    unseen=("Say this in Chinese: {n}", "Translate this sentence into Chinese: {n}"),
)

SUMMARISE = Question(
    answer="{v}",
    trained=(
        "Summarise in one sentence: {n}",
        "Sum this up: {n}",
        "Say this in short: {n}",
        "Give a summary of this text: {n}",
    ),
    unseen=("Summarise this text: {n}", "Sum this up in one sentence: {n}"),
)
