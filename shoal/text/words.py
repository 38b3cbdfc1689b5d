"""Names, things and values for the made-up facts of the rows that ask.

The look-up task of the evaluation ('The password of Alice is harbor.') uses none of these names, values or things.
"""

from __future__ import annotations

NAMES = (
    "Adam Agnes Albert Amelia Andrew Anita Anton Arthur Beatrice Ben Bernard Bruno Carla Cecilia Charles Chloe Daniel "
    "David Diana Dorothy Edgar Edith Edward Eleanor Elias Ellen Eric Ernest Esther Eva Felix Fiona Florence Gabriel "
    "George Gloria Grace Gregory Hannah Harold Hector Hugo Ida Irene Isaac Ivan Jacob James Jane Jasper Joan John "
    "Jonas Joseph Julia Karen Katherine Kevin Leo Lewis Linda Louis Lucy Magnus Marcus Margaret Martha Martin Mary "
    "Matthew Max Michael Miriam Monica Nadia Nathan Nicholas Nina Nora Olga Oliver Patrick Paul Peter Philip Rachel "
    "Rebecca Richard Rosa Ruth Samuel Sarah Simon Sofia Stella Stephen Susan Theodore Timothy Ursula Vera Vincent "
    "Walter Wendy William Yusuf Zoe"
).split()

THINGS = (
    "badge colour", "birthplace", "call sign", "desk", "favourite animal", "favourite colour", "favourite food",
    "favourite instrument", "first employer", "home town", "key word", "locker", "login", "lucky number", "middle name",
    "nickname", "office", "parking space", "pet", "profession", "project", "room", "seat", "secret word", "ship",
    "sport", "team", "telephone extension", "ticket", "vehicle",
)  # fmt: skip

VALUES = (
    "acorn amber apple arrow badger bamboo banjo barley beacon birch biscuit bishop blanket bottle brick bronze butter "
    "button cactus camel canal canvas canyon carbon carpet cedar cello cherry chess circle clover cobalt coffee comet "
    "coral cotton cradle crystal curtain daisy delta desert diamond dolphin donkey dragon eagle ebony elbow elephant "
    "ember engine feather fiddle finger flute fossil fountain galaxy ginger glacier globe goose granite grape guitar "
    "hammer harvest hazel helmet honey hornet indigo island ivory jacket jaguar jasmine jungle kettle kitten ladder "
    "lantern lemon leopard lily linen lion lizard lobster magnet maple meadow melon mercury monkey morning mountain "
    "mustard needle nickel oak oboe ocean olive onion opal orchid otter oyster paddle panther parrot pearl pebble "
    "pencil pigeon pillow pine pistol plum pocket pony poppy prairie pumpkin purple quartz rabbit radio raven river "
    "robin rubber saffron salmon sapphire satin scarlet shadow shovel sparrow spider spoon squirrel stone sugar summer "
    "tailor teapot tiger timber tobacco tomato tower trumpet tulip tunnel turtle umbrella valley vanilla violet violin "
    "wagon walnut whale wheat willow wolf yellow zebra"
).split()

PLACES = (
    "Amsterdam Athens Bergen Bilbao Boston Cairo Chicago Copenhagen Dublin Geneva Glasgow Hamburg Havana Helsinki "
    "Istanbul Kyoto Lagos Lima Lisbon London Madrid Milan Montreal Moscow Mumbai Nairobi Naples Oslo Paris Porto "
    "Prague Quito Rome Seattle Seoul Sofia Sydney Tokyo Toronto Turin Vienna Warsaw Zurich"
).split()

FACTS = (
    " The {thing} of {name} is {value}.",
    " {name}'s {thing} is {value}.",
    " For {name}, the {thing} is {value}.",
    " It is known that the {thing} of {name} is {value}.",
    "\n\nNote: the {thing} of {name} is {value}.\n\n",
    " According to the register, {name} has {value} as {thing}.",
)

STATEMENTS = (
    " As stated above, the {thing} of {name} is",
    " Recall that {name}'s {thing} is",
    " So the {thing} of {name} is",
    " Again: the {thing} of {name} is",
    "\n\nTo repeat, for {name} the {thing} is",
)

QUESTIONS = (
    "What is the {thing} of {name}?",
    "What is {name}'s {thing}?",
    "Which {thing} does {name} have?",
    "According to the text, what is the {thing} of {name}?",
)

ANSWERS = ("{value}", "{value}.", "The {thing} of {name} is {value}.", "{name}'s {thing} is {value}.")

TOPICS = {
    "anarchism": "politics", "linux-doc-6.1": "Linux kernel", "python3.11-doc": "Python", "perl-doc": "Perl",
    "sagemath-doc": "mathematics", "ada-reference-manual-2012": "Ada", "racket-doc": "Racket", "erlang-doc": "Erlang",
    "brown": "prose", "qtbase5-doc-html": "Qt", "llvm-14-doc": "compilers", "postgresql-doc-15": "PostgreSQL",
    "git-doc": "Git", "ghc-doc": "Haskell", "dict-foldoc": "dictionary", "sqlite3-doc": "SQLite",
    "python-sklearn-doc": "machine learning", "python-django-doc": "Django", "rust-doc": "Rust",
    "fortunes": "sayings", "lilypond-doc-html": "music", "endless-sky-data": "game", "gimp-help-en": "images",
    "postfix-doc": "mail", "cmake-doc": "CMake", "debian-handbook": "Debian", "python-astropy-doc": "astronomy",
    "nova-doc": "cloud", "libgtk-3-doc": "GTK", "apache2-doc": "web server", "tcl8.6-doc": "Tcl",
    "octave-doc": "Octave", "gnome-user-docs": "desktop", "kstars-data": "astronomy", "bind9-doc": "DNS",
}  # fmt: skip
"""What a few-shot classification calls the documents of a package."""
