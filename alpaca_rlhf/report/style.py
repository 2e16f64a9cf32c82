"""The look of the report: one style sheet, light and dark, from a phone's width to paper."""

CSS = """
:root{color-scheme:light dark;--page:#faf9f6;--card:#fff;--ink:#1c2128;--soft:#59626d;
--rule:#e3dfd6;
--grid:#e9e6df;--accent:#0b6e57;--good:#0b6e57;--bad:#ab2f24;--base:#77808c;--few:#a07a2c;
--sft:#2b6cb8;
--bok:#bd5b14;--ppo:#0a8566;--up:10,133,102;--down:189,60,40;
--serif:"Iowan Old Style","Palatino Linotype",Palatino,"Book Antiqua",Georgia,serif;
--sans:system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue","Noto Sans",sans-serif;
--mono:ui-monospace,"SF Mono",Menlo,Consolas,"DejaVu Sans Mono",monospace}
@media screen and (prefers-color-scheme:dark){
:root{--page:#13161a;--card:#1a1e24;--ink:#e6e8eb;--soft:#a3acb8;
--rule:#2d333b;--grid:#2a3038;--accent:#58cfae;--good:#58cfae;--bad:#ff8f80;--base:#98a2af;
--few:#d6b25e;
--sft:#6eabf0;--bok:#f0994f;--ppo:#45c79f;--up:69,199,159;--down:240,110,90}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;scroll-behavior:smooth}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.6 var(--sans)}
main,header,footer{max-width:68rem;margin:0 auto;padding:0 1.25rem}
header{padding-top:3.5rem}
.kicker{margin:0 0 .9rem;color:var(--soft);font-size:.82rem;letter-spacing:.06em}
.kicker b{color:var(--accent);letter-spacing:0;font-size:.95rem}
h1{margin:0;max-width:24em;font:400 clamp(1.65rem,4.4vw,2.7rem)/1.2 var(--serif);text-wrap:pretty}
h1 b{font-weight:600;white-space:nowrap}
h2{margin:0 0 .9rem;font:500 1.65rem/1.25 var(--serif)}
h3{margin:2rem 0 .5rem;font:600 1.05rem/1.35 var(--sans)}
section{margin-top:4.25rem;scroll-margin-top:1rem}
p,ul.plain,dl{max-width:44rem}
.lead{margin:1.1rem 0 0;color:var(--soft);font-size:1.05rem}
.soft{color:var(--soft)}
a{color:var(--accent);text-underline-offset:.15em}
a:focus-visible,summary:focus-visible,.scroll:focus-visible{outline:2px solid var(--accent);
outline-offset:3px}
nav{margin-top:1.75rem;border-top:1px solid var(--rule);padding-top:.8rem;font-size:.9rem}
nav ul{list-style:none;display:flex;flex-wrap:wrap;gap:.25rem 1.15rem;margin:0;padding:0}
nav a{display:inline-block;padding:.2rem 0;text-decoration:none}
nav a:hover{text-decoration:underline}
.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(8.6rem,1fr));margin:2.2rem 0 0;
background:var(--card);border:1px solid var(--rule);border-radius:10px;overflow:hidden;
max-width:none}
.facts div{padding:.8rem 1rem;box-shadow:1px 1px 0 0 var(--rule)}
.facts dt{color:var(--soft);font-size:.8rem;line-height:1.35}
.facts dd{margin:.15rem 0 0;font:500 1.45rem/1.3 var(--serif);font-variant-numeric:lining-nums}
.facts dd small{display:block;color:var(--soft);font:.78rem/1.35 var(--sans)}
.tone-base{--tone:var(--base)}.tone-few{--tone:var(--few)}.tone-sft{--tone:var(--sft)}
.tone-bok{--tone:var(--bok)}.tone-ppo{--tone:var(--ppo)}
figure{margin:1.4rem 0 0;min-width:0}
figcaption{color:var(--soft);font-size:.87rem;line-height:1.45}
.card{background:var(--card);border:1px solid var(--rule);border-radius:10px;padding:1.1rem 1.25rem}
.card figure{margin:0}
.intervals{--name:9.5rem;--value:11rem}
.intervals ul{list-style:none;margin:0;padding:0}
.intervals li{display:grid;grid-template-columns:var(--name) 1fr var(--value);gap:0 1rem;
align-items:center}
.intervals .name{font-weight:600;line-height:1.25;font-size:.95rem}
.intervals .value{font-size:.82rem;line-height:1.3;color:var(--soft);
font-variant-numeric:tabular-nums}
.intervals .value b{color:var(--ink);font-size:1.05rem;margin-right:.45rem}
.intervals .value i{display:block;font-style:normal}
.track{display:block;width:100%;height:3.3rem;overflow:visible}
.axis{position:relative;height:1.5rem;margin:0 calc(var(--value) + 1rem) 0 calc(var(--name) + 1rem)}
.axis span,.x-axis span{position:absolute;transform:translateX(-50%);font-size:.75rem;
color:var(--soft);
font-variant-numeric:tabular-nums}
.intervals figcaption{margin-top:.4rem}
.intervals .axis+figcaption{max-width:46rem}
svg path{vector-effect:non-scaling-stroke;fill:none;stroke:var(--tone)}
svg .grid{stroke:var(--grid);stroke-width:1}
svg .reference{stroke:var(--soft);stroke-width:1;stroke-dasharray:3 3}
svg .whisker{stroke-width:2.5}
svg .faint{opacity:.6;stroke-width:1.5}
svg .dot{stroke-linecap:round;stroke-width:6}
svg .large{stroke-width:13}svg .small{stroke-width:10}
svg .hole{stroke:var(--card);stroke-linecap:round;stroke-width:5.5}
svg .line{stroke-width:2;stroke-linejoin:round;stroke-linecap:round}
svg .line.dashed{stroke-width:1.75;stroke-dasharray:1 4.5}
.grid-2,.grid-3,.grid-4{--least:19.5rem;display:grid;gap:1.1rem;margin-top:1.3rem;
grid-template-columns:repeat(auto-fill,minmax(min(100%,var(--least)),1fr))}
.grid-2{--least:26rem}.grid-4{--least:14.5rem}
.grid-3 .intervals{--name:6.7rem;--value:4.6rem;display:flex;flex-direction:column}
.grid-3 li{gap:0 .7rem}
.grid-3 .axis{margin:0 calc(var(--value) + .7rem) 0 calc(var(--name) + .7rem)}
.grid-3 .axis span:nth-child(even){display:none}
.grid-3 .value{white-space:nowrap}.grid-3 .value span{display:none}
.grid-3 .value i{display:inline}
.grid-3 .track{height:2.1rem}
.grid-3 .name{font-weight:400;font-size:.85rem}
.grid-3 .value b{font-size:.9rem;font-weight:600}
.grid-3 figcaption{order:-1;margin:0 0 .4rem;color:var(--ink);font-weight:600;font-size:.95rem}
.grid-3 svg .large{stroke-width:11}.grid-3 svg .small{stroke-width:8.5}.grid-3 svg .hole{
stroke-width:4.5}
.plot{display:flex;flex-direction:column;height:100%}.plot .legend{margin-bottom:auto}
.plot .area{margin-top:.7rem}
.plot figcaption b{display:block;color:var(--ink);font-size:.95rem}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:.1rem 1rem;margin:.5rem 0 0;padding:0;
font-size:.8rem;color:var(--soft)}
.legend b{color:var(--ink);font-weight:500;font-variant-numeric:tabular-nums}
.key{display:inline-block;width:1.1rem;margin-right:.4rem;vertical-align:.22em;
border-top:2.5px solid var(--tone)}
.key.dashed{border-top-style:dotted}
.area{display:grid;grid-template-columns:2.9rem 1fr;grid-template-rows:8.6rem 1.3rem auto;
padding-right:.6rem}
.lines{grid-column:2;width:100%;height:100%;overflow:visible}
.y-axis{position:relative}
.y-axis span{position:absolute;right:.55rem;transform:translateY(50%);font-size:.75rem;
line-height:1;color:var(--soft);font-variant-numeric:tabular-nums}
.x-axis{grid-column:2;position:relative;margin-top:.3rem}
.x-label{grid-column:2;text-align:right;font-size:.75rem;color:var(--soft)}
.scroll{overflow-x:auto;margin-top:1.2rem;align-self:start;border:1px solid var(--rule);
border-radius:10px;background:var(--card)}
.grid-2>*,.grid-3>*,.grid-4>*{margin:0}
table{border-collapse:collapse;width:100%;font-size:.88rem;line-height:1.35;
font-variant-numeric:tabular-nums}
caption{text-align:left;padding:.75rem 1rem 0;color:var(--soft);font-size:.85rem}
th,td{padding:.55rem .7rem;text-align:right;border-bottom:1px solid var(--rule);vertical-align:top}
tbody tr:last-child>*{border-bottom:0}
th:first-child{text-align:left;padding-left:1rem}td:last-child,th:last-child{padding-right:1rem}
td{white-space:nowrap}
.words td:last-child,.words th:last-child{text-align:left;white-space:normal;width:70%;
padding-left:1.5rem}
thead th{color:var(--soft);font-weight:500;font-size:.8rem;vertical-align:bottom}
tbody th{font-weight:600;white-space:nowrap}
caption span{position:sticky;left:1rem;display:inline-block;max-width:min(100%,78vw)}
tfoot>tr>*{font-weight:600;border-top:2px solid var(--rule);border-bottom:0}
td small,.change small{display:block;color:var(--soft);font-size:.78rem;white-space:nowrap}
.change{margin:-.3rem -.4rem;padding:.3rem .4rem;border-radius:5px;background:rgba(var(--hue),
var(--force))}
.change small{color:inherit}
.chip{display:inline-block;width:.65rem;height:.65rem;border-radius:50%;background:var(--tone);
margin-right:.5rem}
.bar{display:block;min-width:5rem;height:.55rem;margin-top:.35rem;background:var(--grid);
border-radius:3px;overflow:hidden}
.bar span{display:block;height:100%;background:var(--tone)}
.checks{list-style:none;margin:1.2rem 0 0;padding:0;max-width:none;display:grid;gap:.45rem}
.checks li{display:grid;grid-template-columns:5.6rem 1fr;gap:.6rem}
.checks b{font-weight:600;color:var(--good)}.checks .no b{color:var(--bad)}
.answer{margin-top:1.4rem;break-inside:avoid-page}
.answer h3{margin:0;white-space:pre-wrap;overflow-wrap:anywhere}
.answer .number{color:var(--soft);font-weight:400;margin-right:.5rem}
.answer .input{margin:.35rem 0 0;color:var(--soft);white-space:pre-wrap;overflow-wrap:anywhere}
.answer dl{margin:.8rem 0 0;max-width:none}
.answer dl div{display:grid;grid-template-columns:10rem 1fr 3.2rem;gap:0 1rem;padding:.5rem 0;
border-top:1px solid var(--rule)}
.answer dt{font-size:.88rem;font-weight:600;line-height:1.5}
.answer dd{margin:0;white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.5}
.answer .gold{font-variant-numeric:tabular-nums;font-size:.88rem;text-align:right;color:var(--soft)}
.terms{max-width:none;columns:2 24rem;column-gap:2.5rem;margin-top:1.2rem}
.terms div{break-inside:avoid;padding-bottom:.9rem}.terms dt{font-weight:600}.terms dd{
margin:.1rem 0 0;color:var(--soft)}
pre{margin:.9rem 0 0;padding:.9rem 1.1rem;background:var(--card);border:1px solid var(--rule);
border-radius:10px;
overflow-x:auto;font:.82rem/1.55 var(--mono);tab-size:2}
code{font:.88em var(--mono);overflow-wrap:anywhere}
details{margin-top:1rem}summary{cursor:pointer;color:var(--accent);padding:.25rem 0}
footer{margin-top:4.5rem;padding-top:1.25rem;padding-bottom:3rem;border-top:1px solid var(--rule);
color:var(--soft);font-size:.85rem}
@media(max-width:44rem){
th:first-child{position:sticky;left:0;background:var(--card)}
header{padding-top:2rem}section{margin-top:3.2rem}
.wide .intervals li{grid-template-columns:auto 1fr;padding-top:.7rem;align-items:start}
.wide .intervals .name{white-space:nowrap}
.wide .intervals .value{grid-row:1;grid-column:2;text-align:right}
.wide .intervals .track{grid-column:1/-1;height:2.4rem}
.wide .axis{margin:0}.card{padding:1rem}
.facts{grid-template-columns:1fr 1fr}
.answer dl div{grid-template-columns:1fr auto}
.answer dd.text{grid-row:2;grid-column:1/-1}
th,td{padding:.5rem .55rem}.checks li{grid-template-columns:4.6rem 1fr;font-size:.95rem}}
@media print{:root{color-scheme:light;--page:#fff;--card:#fff;--ink:#000;--soft:#444;--rule:#ccc}
body{font-size:10.5pt}header{padding-top:0}nav{display:none}section{margin-top:1.8rem}
main,header,footer{max-width:none;padding-left:0;padding-right:0}
.card,.answer,figure,tr{break-inside:avoid}h2,h3{break-after:avoid}
.scroll,pre{overflow:visible;white-space:pre-wrap}*{-webkit-print-color-adjust:exact;
print-color-adjust:exact}}
"""
