"""Captions of all sorts."""

CAPTIONS = [
    "A dog runs on a beach.",
    "A cat. It sleeps.",
    "=1+1 dogs sit on a beach.",
    '<script>document.title = "stolen"</script> "A" <b>bold</b> & \'quoted\' <img src=x onerror=alert(1)> dog.',
    "Ein Hund läuft am Strand,",
    "一只狗在海滩上奔跑。",
    "A boat.\nA second line.",
    "A red bus, stopped.",
]
