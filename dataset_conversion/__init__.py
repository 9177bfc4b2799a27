"""Converters: public data sets into raw data sets, one small file per set, one runner.

A converter is a declaration, `PublicSet(facts, scan)`, listed in `registry`:

    FACTS = SetFacts(name="segthor", title=..., channels=("CT",), labels={...}, licence=..., ...)

    def scan(tree: SourceTree) -> Scan:
        images = tree.by_key(r"train/(?P<key>Patient_\\d{2})/(?P=key)\\.nii(\\.gz)?")
        labels = tree.by_key(r"train/(?P<key>Patient_\\d{2})/GT\\.nii(\\.gz)?")
        cases, deviations = paired_cases(images, labels)
        return Scan(FACTS, tuple(cases), tuple(deviations))

    SEGTHOR = PublicSet(FACTS, scan)

What the parts are:

- `facts.SetFacts`: all that is known before a file is opened. What depends on the source (label
  table of a generic form, channels) goes into `dataclasses.replace(FACTS, ...)` in the scan.
- `source_tree.SourceTree`: the files. `match(pattern)` gives (path, match) pairs, `by_key(pattern,
  *groups)` a dict by the text of named groups; patterns are regular expressions over whole path
  components from the right, results are in natural order (2 before 10). Companions of archives,
  empty files and unfinished downloads are set aside and reported; so are volumes that no pattern
  matched, so match what is known and not used, too.
- `scan.FoundCase`: name, images (one `Path` or `Recipe` per channel), label map, subject, split
  (`Split.TRAINING`: imagesTr, `Split.TEST`: imagesTs), role where it is not the folder's own,
  modality of the case, not_annotated, notes. `repair` gets every volume of the case and gives
  (volume, what was done or None).
- `scan.Recipe(make, files)`: a volume that no file holds as it is. `make` is a top-level function,
  or `functools.partial` of one, from the files to a `Volume`; `recipes` has the usual ones.
- `scan.Deviation(message, cases)`: what is not as expected. Nothing is repaired silently.

A scan opens no volume where names suffice. The runner (`runner`) does the rest for every set: reads
each file whole, refuses values that are not in the table, brings label maps to the grid and axis
order of their image (by `facts.label_grid`), links or copies what is .nii.gz and fits, writes the
rest anew, counts against `facts.expected`, lists absent classes, applies `--split`, writes
receipts and, last, dataset.json. A case raises `DataRefused` and fails alone.

A form whose sets are known only when the source was looked at (a folder of sets, an archive) is a
`family.SetFamily`: it finds the sets, and the runner converts each.
"""
