"""The text of `--calib auto`: sentences of many kinds, a few words to a paragraph long.

The first part is from books and speeches whose copyright has expired everywhere (Austen, Carroll, Conrad, Dickens,
Doyle, Lincoln, Melville, Shelley, Stevenson, Stoker, Thoreau, Twain, Wells). The second part was written for llmc
and is dedicated to the public domain (CC0 1.0).
"""

from __future__ import annotations

CALIBRATION_TEXT = """\
It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want of a wife.
However little known the feelings or views of such a man may be on his first entering a neighbourhood, this truth is so well fixed in the minds of the surrounding families, that he is considered as the rightful property of some one or other of their daughters.
"My dear Mr. Bennet," said his lady to him one day, "have you heard that Netherfield Park is let at last?"
Mr. Bennet replied that he had not.
Call me Ishmael.
Some years ago, never mind how long precisely, having little or no money in my purse, and nothing particular to interest me on shore, I thought I would sail about a little and see the watery part of the world.
It is a way I have of driving off the spleen and regulating the circulation.
There now is your insular city of the Manhattoes, belted round by wharves as Indian isles by coral reefs.
Alice was beginning to get very tired of sitting by her sister on the bank, and of having nothing to do.
"And what is the use of a book," thought Alice, "without pictures or conversations?"
There was nothing so very remarkable in that; nor did Alice think it so very much out of the way to hear the Rabbit say to itself, "Oh dear! Oh dear! I shall be late!"
In another moment down went Alice after it, never once considering how in the world she was to get out again.
"Curiouser and curiouser!" cried Alice.
It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness.
It is a far, far better thing that I do, than I have ever done; it is a far, far better rest that I go to than I have ever known.
Marley was dead: to begin with.
There is no doubt whatever about that.
Now, what I want is, Facts.
My father's family name being Pirrip, and my Christian name Philip, my infant tongue could make of both names nothing longer or more explicit than Pip.
To Sherlock Holmes she is always the woman.
I have seldom heard him mention her under any other name.
"You see, but you do not observe. The distinction is clear."
When you have eliminated the impossible, whatever remains, however improbable, must be the truth.
"My name is Sherlock Holmes. It is my business to know what other people don't know."
Mr. Holmes, they were the footprints of a gigantic hound!
You will rejoice to hear that no disaster has accompanied the commencement of an enterprise which you have regarded with such evil forebodings.
It was on a dreary night of November, that I beheld the accomplishment of my toils.
I arrived here yesterday; and my first task is to assure my dear sister of my welfare.
Left Munich at 8:35 P.M., on 1st May, arriving at Vienna early next morning; should have arrived at 6:46, but train was an hour late.
Listen to them, the children of the night. What music they make!
I went to the woods because I wished to live deliberately, to front only the essential facts of life.
The mass of men lead lives of quiet desperation.
Time is but the stream I go a-fishing in.
You don't know about me without you have read a book by the name of The Adventures of Tom Sawyer; but that ain't no matter.
"TOM!" No answer. "TOM!" No answer. "What's gone with that boy, I wonder?"
No one would have believed in the last years of the nineteenth century that this world was being watched keenly and closely by intelligences greater than man's and yet as mortal as his own.
The Time Traveller (for so it will be convenient to speak of him) was expounding a recondite matter to us.
Fifteen men on the dead man's chest, yo-ho-ho, and a bottle of rum!
I was the first to hear the tapping of the blind man's stick upon the frozen road.
Mr. Utterson the lawyer was a man of a rugged countenance that was never lighted by a smile.
Going up that river was like travelling back to the earliest beginnings of the world.
Four score and seven years ago our fathers brought forth on this continent, a new nation, conceived in Liberty, and dedicated to the proposition that all men are created equal.
Now we are engaged in a great civil war, testing whether that nation, or any nation so conceived and so dedicated, can long endure.
The world will little note, nor long remember what we say here, but it can never forget what they did here.
With malice toward none, with charity for all, with firmness in the right, let us strive on to finish the work we are in.
We hold these truths to be self-evident.
When in the Course of human events, it becomes necessary for one people to dissolve the political bands which have connected them with another, a decent respect to the opinions of mankind requires that they should declare the causes.
Shall I compare thee to a summer's day? Thou art more lovely and more temperate.
To be, or not to be: that is the question.
All the world's a stage, and all the men and women merely players.
Once upon a midnight dreary, while I pondered, weak and weary, over many a quaint and curious volume of forgotten lore.
In the beginning God created the heaven and the earth.
The film opens slowly, but by the end I did not want to leave my seat.
I have never been so bored in a cinema.
A clever script and two wonderful leads make this the best comedy of the year.
It is not a bad picture, just an unnecessary one.
The jokes are old, the acting is wooden and the ending makes no sense at all.
Beautifully shot, badly written, and about forty minutes too long.
See it twice.
What could have been a touching story about two brothers turns into a string of car chases, each louder and less interesting than the one before, until even the director seems to have lost count.
My children loved it, and to my surprise so did I.
The sequel has everything the first film had, except a reason to exist.
Great sound, but the battery lasts barely two hours and the case broke after a week.
Arrived on time, works as described, would buy again.
DO NOT BUY THIS. It stopped working on the third day and nobody answers the phone!!!
The waiter was friendly; the soup was cold.
Five stars for the view, one for the breakfast.
Our room smelled of paint, the lift was out of order and the pool turned out to be on the other side of the road.
Honestly? Not great, not terrible.
I can't recommend this book highly enough.
The central bank raised its main interest rate by a quarter of a point on Thursday, the third increase this year.
Shares in the company fell 12.4% after it warned that profits would miss expectations.
Heavy rain flooded several villages in the valley overnight, and more than two hundred people had to leave their homes.
The mayor said the new bridge would open in March, two years later than planned.
Scientists have found water ice in a crater near the south pole of the Moon.
The home side won 3-1 after extra time.
A spokeswoman declined to comment.
The museum will be closed on Mondays from October to April.
Police are looking for a blue van that was seen near the station at about half past nine.
Turnout was 61 per cent, four points higher than at the last election.
The painting, long thought to be a copy, sold for 2.3 million euros.
Prices of coffee, cocoa and sugar rose again last month.
How do I reset my password?
My order #48213 has not arrived yet; could you check where it is?
I was charged twice for the same ticket and would like my money back.
Please cancel my subscription with effect from the end of the month.
What time does the last train to the airport leave?
Can I return the shoes if they don't fit?
Is there a vegetarian option on the menu?
Which of these cables do I need for a second monitor?
Thank you, that solved it.
Hello, is anybody there?
I'd like to book a table for four at eight on Friday, if possible near the window.
The app crashes whenever I open the settings page on my phone.
Who wrote the letter, and when?
What is the capital of Australia?
Why is the sky blue?
How many legs does a spider have?
Where can I find the minutes of the last meeting?
When was the first photograph taken?
Does this medicine make you sleepy?
Turn left at the church, follow the river for two miles, and you will see the mill on your right.
Preheat the oven to 180 degrees, butter the tin, and beat the eggs with the sugar until they are pale.
Add a pinch of salt.
Let the dough rest for an hour in a warm place, then knead it again and shape it into twelve rolls.
Before you open the case, switch off the computer and pull out the plug.
Press and hold both buttons for five seconds until the light turns green.
Tighten the four screws crosswise, a little at a time, so that the plate stays level.
Keep out of the reach of children.
Take one tablet twice a day with water, and do not drive for six hours afterwards.
The function returns a list of pairs, sorted by the first element.
If the file does not exist, an exception is raised and nothing is written.
for (i = 0; i < n; i++) sum += a[i] * b[i];
SELECT name, price FROM products WHERE stock > 0 ORDER BY price DESC;
def mean(xs): return sum(xs) / len(xs)
The server answered with status 503 after 30 seconds; the client tried again three times and then gave up.
Memory is allocated once, when the program starts, and never while it runs.
Error: cannot open /etc/app/config.yaml: permission denied
Version 2.4.1 fixes a crash when the list is empty and makes sorting about 15% faster.
The patient is a 54-year-old man with chest pain that began two hours before admission.
No fever, no cough, blood pressure 140/90.
The results suggest, but do not prove, that sleep improves memory in older adults (p = 0.03, n = 212).
Water boils at a lower temperature on a mountain because the pressure of the air is less there.
A triangle with sides of 3, 4 and 5 has a right angle.
Light takes a little over eight minutes to reach the Earth from the Sun.
Bees tell one another by a dance where the flowers are.
The heart of a blue whale weighs as much as a small car.
Copper conducts electricity better than iron, silver better than copper.
The river rises in the hills to the north, crosses the plain in wide bends and reaches the sea after three hundred kilometres.
In 1869 the two railway lines met in the desert, and a telegraph operator sent a single word to the whole country: done.
The old town was destroyed by fire in 1734 and rebuilt in brick.
She studied law in Vienna, worked for some years as a judge, and only began to write when she was past forty.
The tenant shall keep the premises in good repair and shall not make alterations without the written consent of the landlord.
This agreement is governed by the law of the place where the seller has its seat.
Neither party is liable for delays caused by events beyond its control.
The committee met on 14 June and approved the budget with two votes against.
Payment is due within thirty days of the date of the invoice.
Dear Ms. Okafor, thank you for your application; we would be glad to meet you on Tuesday at ten.
Best wishes to you and your family for the new year.
See you tomorrow!
Sorry I'm late, the bus broke down.
"Do you think it will rain?" she asked. "It always does," he said, and took the umbrella.
"Nobody told me," said the boy, "so how was I to know?"
He looked at the letter for a long time, folded it twice, and put it into the fire.
The dog waited at the gate every evening until the lamps were lit.
Nothing moved in the square but a sheet of newspaper.
She laughed, and for a moment the whole table was quiet.
There were three keys on the ring, and none of them fitted.
By the time they reached the top, the fog had come in and there was nothing to see at all.
His grandmother kept her money in a tea tin, her letters in a shoe box and her opinions to herself.
The wind dropped after midnight, and in the silence they could hear the ice moving on the lake.
I told you so.
We were young, we had a map that was twenty years old, and it did not occur to us that a road might have been moved.
Once there was a king who had a clock but no time.
The smallest of the five houses was painted yellow.
Good morning.
Yes.
No, thank you.
OK
lol that was so funny i can't even
best. day. ever. :)
why is this app sooo slow today???
@maria are you coming tonight? bring the speakers
new phone, who dis
Monday again...
I miss the sea.
So proud of my sister, who finished her first marathon today in 3:58!
Unpopular opinion: pineapple is fine on pizza.
The traffic on the A4 is terrible, take the train.
Just finished season two and I have so many questions.
10 out of 10, no notes
Red, green, blue, yellow, black, white.
One two three four five six seven eight nine ten.
apples 1.20, pears 2.50, bread 3.10, milk 0.99
Tel. +44 20 7946 0000, Mon-Fri 9:00-17:30
https://www.example.com/products?id=42&lang=en
2024-02-29T23:59:59Z
x^2 + y^2 = z^2
Berlin, Paris, Madrid, Rome and Vienna can all be reached by night train.
Der Zug nach Hamburg fährt heute von Gleis sieben.
Il fait beau aujourd'hui, mais demain il pleuvra.
¿Dónde está la biblioteca más cercana?
La vita è bella.
O tempo passa depressa demais.
The words naïve, café and façade are written with accents by some and without by others.
Temperatures will fall below zero tonight, with snow above 400 metres.
The orchestra played the slow movement more quietly than I had ever heard it.
Nurses, teachers and bus drivers went on strike for the second week.
A cheap knife is sharp once; a good one can be sharpened a thousand times.
People who cannot cook should at least learn to choose a restaurant.
If it were easy, everybody would do it.
She is neither tall nor short, neither loud nor shy, and yet you notice her at once.
Although the samples had been stored for eleven years at minus eighty degrees, almost all of them could still be used.
The model was trained on ten million pairs of sentences, of which about a tenth were thrown away because the languages did not match.
Everything you need is in the box: the frame, the screws, a small spanner and a sheet with pictures but no words.
Not only did the new machine use less power than the old one, it also made less noise, took up half the room, and, to the relief of everyone in the office, it did not play a tune when it had finished.
That is all.
"""  # noqa: E501
