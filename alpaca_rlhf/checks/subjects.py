"""Subjects and shapes of the English instructions: each shape of a topic suits each of its subjects.

A line of subjects is `subject | words that an answer about it may hold`. A shape is `genre: text`.
"""

from __future__ import annotations

TOPICS = {
    "pastimes": (
        """
        growing tomatoes on a balcony | soil sunlight pots water plants
        learning to play the guitar | chords strings practice fingers songs
        baking sourdough bread at home | flour yeast dough oven loaf
        training for a half marathon | running miles shoes pace rest
        keeping bees in the countryside | honey hive flowers sting wax
        painting landscapes with watercolours | brush paper colours sky paint
        knitting a warm winter scarf | wool needles yarn stitches pattern
        collecting old postage stamps | album countries letters rare paper
        repairing a broken bicycle chain | oil links pedals tools wheel
        photographing birds in wetlands | camera lens patience feathers light
        sewing clothes for small children | fabric thread needle buttons size
        hiking through steep mountain forests | boots trail map backpack trees
        swimming in cold open lakes | water wetsuit breath shore temperature
        playing chess against stronger opponents | pieces moves opening strategy board
        singing in an amateur choir | voice harmony rehearsal concert songs
        carving spoons from fresh birch | knife wood handle bark shape
        brewing strong coffee by hand | beans grind filter water cup
        fishing from a small rowing boat | bait rod lake catch patience
        dancing tango with a new partner | steps music rhythm balance lead
        watching stars through a telescope | planets night moon sky lens
        writing poems before breakfast | words rhyme notebook morning lines
        pickling vegetables for the winter | jars vinegar salt cucumbers spices
        restoring antique wooden chairs | varnish glue sandpaper wood legs
        juggling three balls at once | hands throw catch rhythm practice
        foraging mushrooms in autumn woods | basket poison forest guide species
        sketching strangers on the train | pencil faces paper lines passengers
        """,
        """
        advice: What should a beginner know about {}?
        advice: Which mistakes are common when {}?
        message: Write a friend who has taken up {}.
        opinion: Is {} worth all the effort?
        story: Tell a funny tale of {}.
        describe: Describe a whole afternoon spent {}.
        advice: How could a shy person start {}?
        explain: Explain why so many enjoy {}.
        message: Draft an invitation to join us in {}.
        opinion: Persuade a tired colleague to try {}.
        howto: How do I prepare for {}?
        advice: What might go wrong while {}?
        """,
    ),
    "places": (
        """
        a fishing village in heavy fog | boats harbour nets sea gulls
        the night market behind the station | stalls lanterns food crowd spices
        an old library with creaking stairs | books shelves dust silence readers
        a desert town at noon | sand heat shade well sun
        the rooftop garden of a hospital | patients flowers nurses benches view
        an abandoned railway tunnel | tracks dark echo bricks water
        a busy harbour before sunrise | ships cranes cargo workers waves
        the smallest island in the bay | rocks ferry lighthouse seals tide
        a bakery on a steep street | bread ovens smell customers flour
        the waiting room of a dentist | magazines chairs drill nerves clock
        a mountain hut in a snowstorm | wind fire blankets skis soup
        the botanical garden after rain | leaves drops greenhouse orchids paths
        a football stadium without spectators | grass seats goals silence lights
        the kitchen of a large hotel | chefs pans steam orders knives
        a village school with nine pupils | teacher desks chalk children lessons
        the bridge between two rival towns | river stones traffic crossing people
        a museum of broken machines | gears exhibits guide rust visitors
        the last bookshop in the suburb | novels owner shelves customers paper
        an allotment beside the motorway | vegetables cars shed gardeners noise
        a floating market on a brown river | boats fruit sellers paddles water
        the cellar under a theatre | costumes props ropes stage shadows
        a ski resort in midsummer | lifts meadows cows hikers grass
        the castle ruin above the vineyard | walls grapes tower stones wine
        a laundrette open all night | machines coins clothes soap strangers
        the control tower of a tiny airport | planes runway radio pilots weather
        """,
        """
        describe: Describe the sounds of {}.
        story: Tell a ghost story about {}.
        message: Write a postcard from {}.
        opinion: Why would anybody visit {}?
        describe: What does a visitor notice first in {}?
        story: Invent a surprising meeting in {}.
        poem: Compose a poem on {}.
        advice: How could the town improve {}?
        message: Draft a cheerful advertisement for {}.
        explain: Explain to tourists what happens in {}.
        """,
    ),
    "nature": (
        """
        the tides along a rocky coast | moon gravity ocean water high
        the colours of a double rainbow | light rain drops sun reflection
        the long migration of arctic terns | birds flight poles distance summer
        thunder that follows distant lightning | sound electricity storm clouds light
        the changing phases of the moon | earth sun orbit shadow full
        a volcano that wakes after centuries | lava ash magma eruption mountain
        the roots of a very old oak | soil water tree nutrients ground
        salt crystals growing in a glass | water evaporation sodium shape solution
        frost patterns on a window pane | ice glass cold water crystals
        the slow drift of continents | plates earth ocean mountains crust
        mushrooms that glow in the dark | fungi light spores forest insects
        the sleep of bears in winter | hibernation den fat heartbeat cold
        sand dunes that wander with the wind | desert grains shape moving air
        the song of humpback whales | ocean sound males mating deep
        rust on an iron gate | oxygen water metal paint oxide
        the yearly flood of a great river | water rain fields mud banks
        hot springs in a frozen valley | water heat rocks steam minerals
        the dance of honey bees | flowers hive direction nectar workers
        northern lights over a quiet fjord | sun particles sky green magnetic
        a coral reef losing its colours | algae ocean warming bleaching fish
        the echo in a deep canyon | sound walls waves reflection voice
        dew on spider webs at dawn | water drops night air silk
        leaves that turn red in October | autumn chlorophyll trees sugar colours
        the shadow of a solar eclipse | moon sun earth sky darkness
        """,
        """
        explain: Explain {} to a child.
        explain: What causes {}?
        describe: Describe {} to someone blind.
        poem: Write a short poem about {}.
        story: Make up a legend that explains {}.
        advice: How can I observe {} safely?
        opinion: What could people learn from {}?
        explain: Summarise what scientists know of {}.
        message: Write a diary entry about {}.
        """,
    ),
    "work": (
        """
        a night nurse in a children's ward | patients hospital care medicine sleep
        a bus driver on a mountain route | passengers road brakes curves tickets
        the keeper of a remote lighthouse | lamp ships storm sea island
        a young teacher of mathematics | pupils numbers lessons school classroom
        a plumber called out on Sundays | pipes leaks water tools customers
        an interpreter at a peace conference | language words talks delegates trust
        a baker who hates early mornings | bread oven dough flour alarm
        a train conductor with a broken watch | tickets passengers station late time
        a vet who treats farm animals | cows horses sheep medicine farmers
        an engineer who tests roller coasters | safety rides speed loops machines
        a librarian in a travelling van | books villages readers roads shelves
        a gardener at a royal palace | roses lawn hedges plants flowers
        a chef in a research station | food scientists kitchen ice supplies
        a piano tuner with sensitive ears | strings notes keys sound music
        a firefighter in a dry region | fire water smoke hoses rescue
        a tailor for theatre actors | costumes fabric stage thread measure
        a postman on a chain of islands | letters boat parcels weather doors
        a judge in a small claims court | law evidence parties decision fair
        a beekeeper turned city planner | streets hives parks buildings bees
        an apprentice in a clock workshop | gears springs time repair hands
        a window cleaner of skyscrapers | glass ropes height wind bucket
        a translator of medieval letters | latin words ink scholars meaning
        a goalkeeper near the end of her career | football goals gloves team saves
        an archivist who finds a secret | documents papers boxes history letter
        """,
        """
        describe: Describe a hard day for {}.
        story: Tell how luck changed for {}.
        message: Write a thank-you note to {}.
        opinion: Which qualities matter most for {}?
        advice: Give some career advice to {}.
        message: Draft an unusual job advert for {}.
        story: Invent a funny misunderstanding involving {}.
        explain: What skills are needed by {}?
        opinion: Would robots ever replace {}?
        """,
    ),
    "people": (
        """
        a neighbour who drums after midnight | noise music sleep talk wall
        a friend who never pays back money | loan trust debt honest talk
        a colleague who takes credit for my ideas | work boss meeting team fair
        a teenager who refuses to leave the house | parents games room friends worry
        a grandfather who forgets his medicine | pills reminder doctor family box
        a cousin who wants to quit university | study degree career parents choice
        a roommate who leaves dirty dishes | kitchen cleaning sink rules plates
        a manager who sends emails on Sunday | work rest boundaries messages time
        a brother who has moved far away | calls visit family miss distance
        a classmate who copies my homework | school teacher cheating help honest
        an uncle who argues about politics | dinner opinions family listen respect
        a customer who shouts at the cashier | calm shop complaint polite manager
        a daughter who is afraid of dogs | fear animals bite gentle slow
        a partner who snores very loudly | sleep night pillow doctor noise
        a guest who stays too long | home visit host polite leave
        a puppy owner who ignores the rules | dog leash park barking training
        a sister who plans a secret wedding | ceremony family surprise guests marriage
        a coach who only praises the winners | team sport effort players encourage
        a student who is terrified of exams | study tests calm breathing prepare
        a widow who wants to dance again | music partner grief class joy
        a boss who forgets every birthday | office cake staff calendar kind
        a twin who feels overlooked | sibling parents attention compare feelings
        """,
        """
        advice: How should I deal with {}?
        message: Write a polite note to {}.
        story: Tell a story with a happy end about {}.
        explain: What might be the motives of {}?
        advice: Suggest a first step towards helping {}.
        opinion: Is it fair to blame {}?
        message: Draft a speech in honour of {}.
        describe: Sketch the character of {}.
        """,
    ),
    "food": (
        """
        a thick lentil soup with cumin | onion garlic pot broth spices
        rice pudding with cinnamon and plums | milk sugar fruit stir sweet
        a picnic salad without any mayonnaise | vegetables oil lemon bowl fresh
        pancakes for eleven hungry children | batter flour eggs milk pan
        grilled aubergines with mint yoghurt | oil garlic grill salt slices
        a birthday cake shaped like a train | icing sponge chocolate candles sugar
        potato dumplings filled with cheese | dough boil butter flour salt
        fried noodles from last night's leftovers | wok soy vegetables egg sauce
        a pot of green tea | leaves water cup hot steep
        roasted pumpkin with rosemary honey | oven herbs oil salt squash
        sandwiches for a long train journey | bread cheese filling wrap lunch
        a vegan stew for cold evenings | beans carrots potatoes pot spices
        homemade ginger lemonade | lemon sugar water ice fresh
        scrambled eggs on burnt toast | butter pan salt bread breakfast
        a spicy bean burrito | tortilla rice chilli salsa wrap
        apple crumble in a tiny oven | butter sugar flour fruit bake
        fish baked in salt crust | oven lemon herbs fillet sea
        a breakfast that needs no cooking | fruit oats yoghurt nuts bread
        pickled herring with beetroot | vinegar onion fish jar salt
        chocolate truffles rolled in cocoa | cream butter melt sweet chill
        a warm salad of roasted beets | goat cheese walnuts oil vinegar
        tomato sauce that simmers for hours | garlic basil onion pasta pot
        """,
        """
        howto: How do I make {}?
        describe: Describe the taste of {}.
        message: Write a menu entry for {}.
        explain: Which ingredients belong in {}?
        opinion: Who would you never serve {}?
        story: Tell how a cook ruined {}.
        advice: How can I improve {}?
        poem: Write a silly rhyme about {}.
        opinion: Why do some people love {}?
        """,
    ),
    "things": (
        """
        the bicycle with two gears | wheels pedals chain riding speed
        the first printed newspaper | press ink paper readers news
        a compass that points nowhere | needle north direction map magnet
        the umbrella left on a tram | rain handle passenger lost wet
        a typewriter with a missing key | letters ribbon paper typing words
        the zip of a winter coat | teeth metal jacket slider fasten
        a lamp powered by footsteps | light energy walking electricity steps
        the elevator in a glass tower | floors cables buttons building doors
        a violin made from matchsticks | music strings wood sound bow
        the microwave oven in the office | food heat lunch waves kitchen
        a hot air balloon with stripes | basket flame sky wind float
        the sewing machine of my grandmother | thread needle fabric pedal stitch
        a paper map of a vanished city | streets fold river names travel
        the alarm clock nobody can stop | morning sleep ring noise time
        an electric wheelchair for sandy beaches | tyres battery access sea motor
        the barometer beside the front door | weather pressure air glass storm
        a suitcase that follows its owner | wheels travel airport luggage sensor
        the refrigerator before electricity | ice cold food box blocks
        a robot that folds laundry | shirts machine arms clothes towels
        the telescope on the school roof | stars lens planets pupils night
        a pencil that writes under water | graphite paper divers notes sea
        the water wheel of an old mill | river grain turning flour stone
        a drone which waters rice fields | farmers flying crops spray battery
        """,
        """
        explain: Explain the purpose of {}.
        story: Tell the life story of {}.
        message: Write a sales pitch for {}.
        opinion: Would you miss {}?
        describe: Describe {} in vivid detail.
        explain: How does {} work?
        opinion: Who could still need {}?
        poem: Write an ode to {}.
        message: Draft a complaint letter about {}.
        advice: What should buyers check about {}?
        """,
    ),
    "events": (
        """
        a surprise party for a retired teacher | guests cake pupils gift speech
        the yearly flea market in our street | stalls tables neighbours bargains toys
        a wedding in a tiny chapel | bride flowers guests rings music
        the opening of a public swimming pool | water mayor children ribbon slides
        a power cut during the final match | lights candles football dark television
        the school concert with broken microphones | music pupils stage parents sound
        a chess tournament for grandparents | players board moves prize clock
        the harvest festival of a wine village | grapes music barrels dance autumn
        a charity run in the pouring rain | runners donations wet finish money
        the farewell dinner of our choir leader | singers songs toast gift music
        a science fair with only one visitor | experiments pupils posters judge volcano
        the move into a new apartment | boxes keys furniture neighbours van
        a camping trip without a tent | stars fire sleeping forest cold
        the election of a class president | votes pupils speech posters promise
        a book club meeting on a ferry | readers novel sea discussion waves
        the annual repair day at the town hall | tools toasters volunteers broken bikes
        a film night under the open sky | screen blankets popcorn movie stars
        the reunion of a forgotten rock band | guitar fans songs stage drums
        a cooking contest between two streets | judges dishes recipe neighbours taste
        the first snow of the year | white children cold sledges flakes
        """,
        """
        howto: How would you organise {}?
        message: Write an invitation to {}.
        describe: Describe the mood at {}.
        story: Tell what went wrong at {}.
        message: Draft a news report about {}.
        advice: What should guests bring to {}?
        opinion: Why do we remember {}?
        poem: Compose a toast in verse for {}.
        message: Apologise for missing {}.
        """,
    ),
    "ideas": (
        """
        schools that begin at noon | pupils sleep lessons teachers morning
        cities without any private cars | buses bicycles streets traffic air
        a four-day working week | jobs rest productivity employees free
        free museums on rainy days | art visitors tickets culture paintings
        homework written only by hand | pupils pen paper writing school
        restaurants that serve just one dish | menu cook guests choice food
        letters instead of text messages | post paper writing slow friends
        libraries that lend garden tools | borrow members sharing plants money
        public transport paid by taxes | buses trains tickets cities costs
        houses built from recycled bottles | plastic walls glass waste building
        a holiday without any telephone | rest screen travel quiet calls
        roofs covered with wild flowers | bees green rain insects houses
        robots as companions for the elderly | care lonely machines family talk
        a ban on plastic bags | shops waste ocean paper cotton
        teaching chess in kindergarten | children thinking games moves board
        silent carriages on long trains | passengers quiet talking phones travel
        lotteries that pay for parks | tickets trees money prize cities
        voting from the age of sixteen | young elections politics democracy parties
        kitchens shared by whole streets | neighbours cooking meals cost together
        winters spent entirely in the south | warm birds sun travel cold
        clothes rented by the month | fashion wardrobe waste money washing
        gardens planted on school roofs | vegetables pupils soil bees classes
        """,
        """
        opinion: What speaks in favour of {}?
        opinion: What speaks against {}?
        explain: Explain the idea of {} to my aunt.
        message: Write to the mayor about {}.
        story: Imagine a world with {}.
        describe: Describe ordinary life with {}.
        advice: How could one test {} cheaply?
        opinion: Would children welcome {}?
        message: Draft a slogan and a speech for {}.
        """,
    ),
    "tales": (
        """
        a lighthouse keeper who fears the dark | lamp sea night ships storm
        two snails racing across a motorway | slow cars shell road danger
        a cloud that refuses to rain | sky water farmers wind drops
        the princess who repairs tractors | engine oil castle farmer tools
        a dragon with a bad cold | sneeze fire nose cave medicine
        the violin that plays by itself | music strings night bow magic
        an astronaut who misses her cat | space rocket stars home fur
        the boy who collects forgotten sounds | bells jar silence ears voices
        a bridge that wants to travel | river stones walk cars cross
        the wolf who becomes a baker | bread flour forest sheep oven
        a mirror that tells only jokes | laugh glass face wall funny
        the town where clocks run backwards | time yesterday young hands hours
        a whale lost in a swimming pool | water sea swimmers splash rescue
        the thief who steals only left shoes | feet police pairs laces night
        an old tree that remembers names | leaves children bark carved wind
        the girl with a pocket full of storms | wind thunder coat rain lightning
        a tram that never reaches its stop | passengers rails driver doors window
        the king who loses his shadow | sun crown light castle dark
        a tailor who sews with moonlight | thread night needle silver coat
        the robot that learns to whistle | song metal tune mouth workshop
        a goose appointed as judge | court law farm feathers decision
        the map drawn by a sleeping child | dream paper treasure lines sea
        a snowman in love with summer | sun melt warm cold heart
        """,
        """
        story: Tell the story of {}.
        poem: Write a ballad about {}.
        story: Begin a novel about {}.
        message: Write a letter from {}.
        describe: Describe the home of {}.
        opinion: What could be the moral of {}?
        explain: Explain the secret of {}.
        message: Draft a newspaper headline and article about {}.
        advice: What would you advise {}?
        """,
    ),
    "animals": (
        """
        the common garden snail | shell slime leaves slow plants
        wild horses on the steppe | herd grass running foals mares
        an octopus in a jar | arms tentacles ocean clever lid
        city foxes at night | rubbish streets cubs food tail
        the shy giant panda | bamboo bear china forest cubs
        ants that farm aphids | colony sugar leaves insects workers
        a parrot learning swear words | bird talk cage feathers repeat
        sea turtles on a crowded beach | eggs sand shell ocean hatch
        the blind cave salamander | dark eyes water skin underground
        emperor penguins in a blizzard | ice eggs huddle cold chicks
        hedgehogs crossing a garden | spines hibernate insects leaves night
        a cow that escaped the barn | milk farmer field grass fence
        bats beneath a stone bridge | insects night wings echo sound
        the tongue of a chameleon | insects colour lizard sticky fast
        elephants at a shrinking waterhole | trunk herd water drought calf
        crows that remember faces | birds clever people grudges black
        a guide dog in training | blind harness owner commands walking
        spiders in the bathroom | web legs insects silk corner
        reindeer under the midnight sun | herd antlers snow lichen sami
        the patient grey heron | fish bird water legs pond
        jellyfish drifting without brains | ocean tentacles sting float nerves
        """,
        """
        explain: What do we know about {}?
        describe: Describe {} for a children's book.
        story: Tell a fable about {}.
        advice: How can we protect {}?
        poem: Write a lullaby for {}.
        explain: Explain a surprising fact about {}.
        opinion: Why are people fascinated by {}?
        message: Write a radio announcement about {}.
        """,
    ),
    "daily life": (
        """
        sleep better in a noisy city | bed night dark earplugs rest
        save money on a small income | budget spending bank food bills
        clean a very dirty oven | soda vinegar scrub gloves grease
        remember the names of new people | repeat faces memory listen introduce
        pack a suitcase for two climates | clothes layers shoes roll jacket
        apologise after a foolish quarrel | sorry listen honest feelings mistake
        wake up early without coffee | alarm sleep light morning water
        prepare for a difficult job interview | questions company practice clothes answers
        read more books every month | pages evening phone library habit
        choose a bicycle for city traffic | brakes gears lights frame helmet
        keep houseplants alive during holidays | water light neighbour pots soil
        speak in front of a large crowd | voice breathe practice audience nerves
        stop checking the telephone at dinner | screen family table habit messages
        learn a foreign language alone | words grammar listening practice speak
        move heavy furniture down narrow stairs | straps lift helpers blankets corners
        fix a dripping kitchen tap | washer water valve wrench leak
        teach a toddler to share toys | patience praise play turns children
        calm down before an important exam | breathe study relax walk sleep
        plan cheap meals for a week | list rice beans shopping leftovers
        write a convincing cover letter | skills company job employer experience
        recover from a long illness | rest doctor food exercise slowly
        make friends in a strange town | club neighbours invite smile join
        organise hundreds of digital photographs | folders dates backup delete albums
        dry wet shoes overnight | newspaper heat air laces stuff
        """,
        """
        howto: How can I {}?
        advice: Give practical tips to {}.
        story: Tell how somebody failed to {}.
        explain: Why is it hard to {}?
        message: Write a letter telling a nephew how to {}.
        opinion: Should schools teach everyone to {}?
        advice: What is the quickest way to {}?
        howto: Walk me through the steps to {}.
        message: Remind my future self to {}.
        """,
    ),
}
"""Topic to its lines of subjects and of shapes."""
