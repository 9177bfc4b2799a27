"""The in-context segmentation network: pure torch, no files.

The modules read in the order of the paper ("Show and Segment", CVPR 2025):

=====================  ==========================================  =========================
paper                  here                                        shape
=====================  ==========================================  =========================
image encoder E        `encoder.ImageEncoder`
F_s, F_q               reference / query features, deepest first   (B, C_i, Z/s, Y/s, X/s)
y_s                    `masks`                                     (B, K, Z, Y, X)
T_f                    `task_encoder.pool_foreground`              (P, 1, C_i), last row of T
T_c                    context tokens, from `task_query`           (P, m, C_i), first rows
T                      task tokens, one tensor per stage           (B, K, m + 1, C_i)
decoder D              `decoder.Decoder`, `decoder.FusionBlock`
T'                     posteriors: one token of each class         (B, K, C_i)
class weights          `decoder.Head.class_weights`                (B, K, c0)
=====================  ==========================================  =========================

B episodes, K classes, P valid (episode, class) pairs, m query tokens, stage i = 0 (deepest).
Arrays are (z, y, x). Nothing is thresholded: the network returns one logit per class and voxel.
Where paper and released code disagree the released code is followed, so that its weights load:
context tokens come first, the foreground token is the last. iris' own models (the defaults of
`config.NetworkConfig`) differ in what lets them learn from scratch: the class is read from the
foreground token instead of token 0, features are normalised before they are pooled, and there is
no position volume.

Import from the modules (`network.config` is light, the others import torch).
"""
