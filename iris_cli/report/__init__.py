"""Pictures and tables: overlays of label maps on images, training curves.

Everything is drawn with matplotlib's Agg backend into a PNG that is published like any file.
Axial pictures are shown as radiologists see them: the patient's right on the left, anterior up.
"""
