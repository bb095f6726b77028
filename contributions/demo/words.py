"""Which words do the demo rows use? Names, places and sentences; the other files of this folder put them together."""

from typing import NamedTuple


class City(NamedTuple):
    name: str
    latitude: float
    longitude: float
    districts: tuple[str, ...]


class Trade(NamedTuple):
    """A category of skills, and what people ask of those who have them."""

    skills: tuple[str, ...]
    tasks: tuple[str, ...]


CITIES = (
    City("Jakarta", -6.2088, 106.8456, ("Tebet", "Kemang", "Cempaka Putih", "Tanah Abang", "Cilincing")),
    City("Bandung", -6.9175, 107.6191, ("Dago", "Cicadas", "Antapani", "Lembang", "Ujungberung")),
    City("Yogyakarta", -7.7956, 110.3695, ("Kotagede", "Sleman", "Bantul", "Prawirotaman", "Umbulharjo")),
    City("Semarang", -6.9667, 110.4167, ("Tembalang", "Genuk", "Banyumanik", "Gunungpati")),
    City("Surabaya", -7.2575, 112.7521, ("Gubeng", "Wonokromo", "Rungkut", "Kenjeran", "Tambaksari")),
    City("Malang", -7.9666, 112.6326, ("Klojen", "Lowokwaru", "Blimbing", "Sukun")),
    City("Denpasar", -8.6705, 115.2126, ("Sanur", "Renon", "Ubung", "Sesetan")),
    City("Mataram", -8.5833, 116.1167, ("Ampenan", "Cakranegara", "Sekarbela")),
    City("Medan", 3.5952, 98.6722, ("Polonia", "Sunggal", "Belawan", "Tembung")),
    City("Padang", -0.9471, 100.4172, ("Lubuk Begalung", "Nanggalo", "Kuranji")),
    City("Palembang", -2.9761, 104.7754, ("Ilir Barat", "Seberang Ulu", "Sukarami")),
    City("Banda Aceh", 5.5483, 95.3238, ("Kuta Alam", "Meuraxa", "Ulee Kareng")),
    City("Pontianak", -0.0263, 109.3425, ("Siantan", "Sungai Jawi", "Kota Baru")),
    City("Makassar", -5.1477, 119.4327, ("Panakkukang", "Rappocini", "Tamalate", "Biringkanaya")),
    City("Palu", -0.8917, 119.8707, ("Talise", "Petobo", "Balaroa")),
    City("Manado", 1.4748, 124.8421, ("Malalayang", "Wenang", "Tuminting")),
    City("Ambon", -3.6954, 128.1814, ("Sirimau", "Nusaniwe", "Leitimur")),
    City("Jayapura", -2.5916, 140.6690, ("Abepura", "Sentani", "Heram")),
)

# fmt: off
TRADES = {
    "building": Trade(
        (
            "carpentry", "masonry", "roofing", "painting", "tiling", "bamboo work", "welding", "plastering",
            "surveying", "scaffolding",
        ),
        (
            "Repair the roof of the prayer hall", "Build a bamboo footbridge", "Paint the community hall",
            "Raise a flooded floor", "Rebuild a garden wall",
        ),
    ),
    "energy and water": Trade(
        (
            "plumbing", "electrical wiring", "well digging", "pump repair", "solar panels", "drainage", "water filters",
            "generator repair", "rainwater tanks", "biogas",
        ),
        (
            "Repair the village water pump", "Clear the blocked drainage canal", "Wire the new kindergarten",
            "Install a rainwater tank", "Put solar lamps along the path",
        ),
    ),
    "food": Trade(
        (
            "community cooking", "food preservation", "baking", "tempeh making", "catering for events",
            "kitchen hygiene", "fish smoking", "nutrition advice", "menu planning", "coffee roasting",
        ),
        (
            "Cook for the public kitchen", "Prepare rice boxes for the clean-up crew", "Teach tempeh making",
            "Pack food parcels before Lebaran", "Feed the harvest helpers",
        ),
    ),
    "farming": Trade(
        (
            "rice planting", "composting", "seed saving", "beekeeping", "fish ponds", "poultry", "grafting fruit trees",
            "irrigation", "mangrove planting", "hydroponics",
        ),
        (
            "Help to plant rice", "Plant mangroves along the shore", "Start a compost bank",
            "Mend the irrigation channel", "Bring in the harvest before the rain",
        ),
    ),
    "teaching": Trade(
        (
            "reading lessons", "mathematics lessons", "English lessons", "sign language", "Quran reading",
            "early childhood play", "exam coaching", "music lessons", "adult literacy", "storytelling",
        ),
        (
            "Tutor children for the school exams", "Read stories in the library garden", "Give evening English lessons",
            "Start a literacy class for adults", "Sort and label donated schoolbooks",
        ),
    ),
    "health": Trade(
        (
            "first aid", "midwifery support", "elder care", "blood pressure checks", "physiotherapy exercises",
            "mental health listening", "herbal gardening", "health education", "wheelchair repair",
            "vaccination logistics",
        ),
        (
            "Help at the posyandu", "Drive an elder to the clinic", "Teach first aid to the youth group",
            "Repair donated wheelchairs", "Visit people who live alone",
        ),
    ),
    "transport": Trade(
        (
            "truck driving", "motorcycle delivery", "bicycle repair", "engine repair", "boat handling",
            "warehouse sorting", "route planning", "loading and lifting", "forklift driving", "courier dispatch",
        ),
        (
            "Move a family to their new house", "Deliver groceries by motorcycle", "Sort the donations warehouse",
            "Repair school bicycles", "Carry water to the upper hamlet",
        ),
    ),
    "disaster response": Trade(
        (
            "flood rescue", "search and rescue", "shelter building", "radio communication", "damage assessment",
            "logistics coordination", "fire fighting", "landslide watch", "trauma support", "debris clearing",
        ),
        (
            "Fill sandbags before high tide", "Clear debris after the storm", "Set up the evacuation tents",
            "Map the damaged houses", "Clean the school after the flood",
        ),
    ),
    "digital": Trade(
        (
            "web design", "phone repair", "computer repair", "spreadsheets", "photography", "video editing",
            "social media", "map making", "translation", "data entry",
        ),
        (
            "Photograph the village market for its website", "Set up computers for the village office",
            "Help vendors with digital payments", "Map the evacuation routes", "Translate the health leaflet",
        ),
    ),
    "community": Trade(
        (
            "event organization", "mediation", "fundraising", "bookkeeping", "gamelan playing", "batik dyeing",
            "sewing", "waste sorting", "night watch", "meeting facilitation",
        ),
        (
            "Organize the kerja bakti", "Sew masks and bags", "Prepare the Independence Day games",
            "Sort waste at the bank sampah", "Keep the books of the cooperative",
        ),
    ),
}
GIVEN_NAMES = (
    "Sari", "Budi", "Dewi", "Agus", "Putri", "Rizky", "Wayan", "Made", "Ketut", "Nyoman", "Siti", "Ahmad", "Nur",
    "Fitri", "Andi", "Rina", "Joko", "Endang", "Bambang", "Yanti", "Hendra", "Lestari", "Dian", "Eko", "Ratna", "Bayu",
    "Indah", "Fajar", "Maya", "Arif", "Wulan", "Teguh", "Citra", "Galih", "Ayu", "Rudi", "Tuti", "Hasan", "Kartika",
    "Ilham", "Mega", "Surya", "Laras", "Dimas", "Intan", "Yusuf", "Melati", "Ucok", "Butet", "Daniel", "Maria",
    "Yohanes", "Marten", "Elisabet",
)
FAMILY_NAMES = (
    "Wijaya", "Santoso", "Lestari", "Hidayat", "Kusuma", "Nugroho", "Siregar", "Nasution", "Simanjuntak", "Hutapea",
    "Setiawan", "Pratama", "Rahman", "Suryadi", "Wibowo", "Halim", "Gunawan", "Saputra", "Utami", "Maharani", "Susanto",
    "Purnomo", "Harahap", "Sinaga", "Tanjung", "Syahputra", "Anwar", "Firdaus", "Basri", "Daeng", "Latuconsina",
    "Pattimura", "Wenda", "Tabuni", "Rumbiak", "Mandagi", "Lumentut", "Suardana", "Sudarma", "Pranata", "Handayani",
    "Permata",
)
# fmt: on

BIOS = (
    "I grew up in {district} and have time on weekends. Ask me about {skill}.",
    "Parent of two. I like {skill} and long evenings of talk on the veranda.",
    "New in {city}, glad to get to know people by working with them.",
    "Retired teacher from {district}. My hands still work: {skill}.",
    "Student in {city}. I help after lectures, mostly with {skill}.",
    "I run a small warung in {district}. Coffee for every helper!",
)
DETAILS = (
    "We need {helpers} people for about {hours} hours near {district}. Lunch is on us.",
    "Our RT in {district} cannot do it alone: {helpers} helpers, {hours} hours, tools are there.",
    "It has waited since the rainy season. {helpers} of us could finish in {hours} hours.",
    "For the families of {district}. Bring gloves and water; {helpers} helpers are enough.",
)
TOOLS = (
    "hoes",
    "ladder",
    "buckets",
    "gloves",
    "pickup truck",
    "first-aid kit",
    "rope",
    "pans",
    "laptop",
    "sewing machine",
)
REPORTS = (
    "Everyone came on time and we finished before the rain.",
    "It took longer than planned; the last part was done by lamp light.",
    "The neighbors joined in, so it went twice as fast.",
    "Done as agreed. The tools are back in the shed of the RT.",
    "I showed two young people how it is done; next time they lead.",
    "We had to stop twice for the weather, but it is finished.",
)
WORK_TITLES = (
    ("mentoring", "Taught {skill} to the youth group of {district}"),
    ("documentation", "Wrote a guide to {skill} for {district}"),
    ("event_organization", "Organized a day of {skill} in {district}"),
    ("community_service", "Helped neighbors in {district} with {skill}"),
    ("code_review", "Reviewed the software of the {city} help desk"),
    ("custom", "Lent tools for {skill} in {district}"),
)
MESSAGES = (
    "We worked side by side on {skill}; I would ask {name} again.",
    "{name} is patient and exact. Learned a lot about {skill}.",
    "Always comes when called. {name} knows {skill}.",
    "{name} led the whole crew through a long day.",
)
STATEMENTS = (
    "I was there and saw it done.",
    "The work was done at my house; I am very thankful.",
    "I checked the result the next morning. It holds.",
    "We worked together from start to finish.",
    "My mother told me about it, and I saw the photographs.",
)
APPROVALS = (
    "Photo and place match the task.",
    "I asked the family; all is as described.",
    "Clear evidence, witnesses agree.",
    "I passed by and saw the result.",
)
REJECTIONS = (
    "The photo is of another day.",
    "The place is far from the task.",
    "Nobody there remembers it; please add a witness.",
)
OUTSIDERS = ("Pak RT", "Bu Lurah", "Ustaz", "Pendeta", "Bidan", "Kepala Dusun", "Ketua PKK", "Guru")
DEAD_LETTERS = (
    ("HTTP 500: internal error of the Markov engine", 500),
    ("HTTP 503: the Markov engine is under maintenance", 503),
    ("HTTP 422: unknown actor", 422),
    ("No answer within 10 seconds", None),
)
