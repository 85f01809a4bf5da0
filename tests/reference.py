"""Slow, obvious loops: the reference for the fast code."""

from __future__ import annotations

import math
from itertools import pairwise

# --- measure: thresholds, curves and ranks --------------------------------------------------


def error_rates(genuine, impostor, threshold, w_genuine=None, w_impostor=None):
    """FAR and FRR at one threshold, pair by pair."""
    w_genuine = [1] * len(genuine) if w_genuine is None else w_genuine
    w_impostor = [1] * len(impostor) if w_impostor is None else w_impostor
    far = sum(w for d, w in zip(impostor, w_impostor, strict=True) if d <= threshold)
    frr = sum(w for d, w in zip(genuine, w_genuine, strict=True) if not d <= threshold)
    return far / sum(w_impostor), frr / sum(w_genuine)


def curve_points(genuine, impostor, w_genuine=None, w_impostor=None):
    """(threshold, far, frr) at -inf and at each distinct distance."""
    thresholds = [-float("inf"), *sorted({*genuine, *impostor})]
    return [(t, *error_rates(genuine, impostor, t, w_genuine, w_impostor)) for t in thresholds]


def area_under_roc(genuine, impostor):
    """The share of (genuine, impostor) couples in the right order; a tie is half right."""
    wins = sum((g < i) + 0.5 * (g == i) for g in genuine for i in impostor)
    return wins / (len(genuine) * len(impostor))


def equal_error_rate(genuine, impostor):
    """The crossing of far = frr with the line between two neighbouring points of the curve."""
    points = curve_points(genuine, impostor)
    for (_, far_0, frr_0), (_, far_1, frr_1) in pairwise(points):
        if far_0 <= frr_0 and far_1 >= frr_1:
            share = (frr_0 - far_0) / ((frr_0 - far_0) + (far_1 - frr_1))
            return far_0 + share * (far_1 - far_0)
    raise AssertionError("the rates cross somewhere")


def strictest_threshold(impostor, target_far):
    """The largest impostor distance whose FAR keeps to the target, else -inf."""
    best = -float("inf")
    for t in impostor:
        if sum(d <= t for d in impostor) / len(impostor) <= target_far:
            best = max(best, t)
    return best


def all_pairs(label, forged):
    """Rows of all genuine pairs and of all impostor pairs, as sets of frozensets."""
    genuine, impostor = set(), set()
    for i in range(len(label)):
        for j in range(i):
            if forged[i] and forged[j]:
                continue
            if label[i] == label[j] and not forged[i] and not forged[j]:
                genuine.add(frozenset((i, j)))
            else:
                impostor.add(frozenset((i, j)))
    return genuine, impostor


def leave_one_out(dist, label, forged, k):
    """Recall at k and MAP@R over the mated probes, one by one."""
    recalls, precisions = [], []
    for probe in range(len(label)):
        others = [j for j in range(len(label)) if j != probe]
        right = {j for j in others if label[j] == label[probe] and not forged[j]}
        if forged[probe] or not right:
            continue
        ranked = sorted(others, key=lambda j: (dist[probe][j], j in right))
        recalls.append(any(j in right for j in ranked[:k]))
        total = 0.0
        for rank in range(1, len(right) + 1):
            if ranked[rank - 1] in right:
                total += sum(j in right for j in ranked[:rank]) / rank
        precisions.append(total / len(right))
    return sum(recalls) / len(recalls), sum(precisions) / len(precisions)


def redrawn_pairs(count, pairs):
    """The pairs (index, identity a, identity b) of identities redrawn `count` times, one by one.

    Copies of one identity are pairs of nothing; each copy brings its own inner pairs.
    """
    copies = [(identity, copy) for identity, c in enumerate(count) for copy in range(c)]
    found = []
    for index, a, b in pairs:
        if a == b:
            found += [index for identity, _ in copies if identity == a]
        else:
            found += [index for x, _ in copies if x == a for y, _ in copies if y == b]
    return found


def nearest_rows(dist, num):
    """The rows of the `num` nearest of each probe; of equally far ones the first."""
    return [sorted(range(len(far)), key=lambda j: (far[j], j))[:num] for far in dist]


def nearest_shares(rows, probe_label, gallery_label):
    """The share of probes whose nearest picture is right, and with a right one among the rows."""
    top_1 = top_5 = 0
    for label, found in zip(probe_label, rows, strict=True):
        top_1 += gallery_label[found[0]] == label
        top_5 += any(gallery_label[row] == label for row in found)
    return top_1 / len(rows), top_5 / len(rows)


# --- learn: losses and mining, every pair and triplet in turn -------------------------------


def all_triplets_loop(genuine, impostor):
    size = range(len(genuine))
    return [(a, p, n) for a in size for p in size for n in size if genuine[a][p] and impostor[a][n]]


def semi_hard_loop(dist, genuine, impostor, margin):
    best = {}
    for a, p, n in all_triplets_loop(genuine, impostor):
        if dist[a][p] < dist[a][n] < dist[a][p] + margin:
            known = best.get((a, p))
            if known is None or dist[a][n] < dist[a][known]:
                best[a, p] = n
    return sorted((a, p, n) for (a, p), n in best.items())


def hardest_loop(dist, genuine, impostor):
    found = []
    for a in range(len(dist)):
        positives = [p for p in range(len(dist)) if genuine[a][p]]
        negatives = [n for n in range(len(dist)) if impostor[a][n]]
        if positives and negatives:
            farthest = max(positives, key=lambda p: dist[a][p])
            nearest = min(negatives, key=lambda n: dist[a][n])
            found.append((a, farthest, nearest))
    return found


def triplet_loss_loop(dist, triplets, margin, soft=False, active_only=False):
    terms = []
    for a, p, n in triplets:
        behind = dist[a][p] - dist[a][n]
        term = math.log1p(math.exp(behind)) if soft else max(behind + margin, 0.0)
        if term > 0 or not active_only:
            terms.append(term)
    return sum(terms) / len(terms) if terms else 0.0


def contrastive_loss_loop(dist, genuine, impostor, margin):
    size = range(len(dist))
    pull = [dist[i][j] ** 2 for i in size for j in size if genuine[i][j]]
    push = [max(margin - dist[i][j], 0.0) ** 2 for i in size for j in size if impostor[i][j]]
    mean_pull = sum(pull) / len(pull) if pull else 0.0
    mean_push = sum(push) / len(push) if push else 0.0
    return 0.5 * mean_pull + 0.5 * mean_push


def supcon_loss_loop(dist, genuine, impostor, temperature):
    terms = []
    size = range(len(dist))
    for a in size:
        positives = [p for p in size if genuine[a][p]]
        everyone = [n for n in size if genuine[a][n] or impostor[a][n]]
        if positives:
            times = {n: 1 if genuine[a][n] else impostor[a][n] for n in everyone}
            total = math.fsum(times[n] * math.exp(-dist[a][n] / temperature) for n in everyone)
            shares = [math.exp(-dist[a][p] / temperature) / total for p in positives]
            terms.append(-sum(math.log(share) for share in shares) / len(positives))
    return sum(terms) / len(terms) if terms else 0.0


def bce_loss_loop(logit, same):
    mean = {}
    for kind in (True, False):
        chance = [1 / (1 + math.exp(-z)) for z, s in zip(logit, same, strict=True) if s is kind]
        terms = [-math.log(c if kind else 1 - c) for c in chance]
        mean[kind] = sum(terms) / len(terms) if terms else 0.0
    return 0.5 * mean[True] + 0.5 * mean[False]


# --- measure: clusters, one picture at a time ------------------------------------------------


def b_cubed_loop(cluster, identity):
    """Precision and recall as Amigo et al. (2009) define them: means over pairs of pictures."""
    num = len(cluster)

    def mean_correct(group):
        total = 0.0
        for a in range(num):
            others = [b for b in range(num) if group[a] == group[b]]
            same = [b for b in others if (cluster[a], identity[a]) == (cluster[b], identity[b])]
            total += len(same) / len(others)
        return total / num

    precision, recall = mean_correct(cluster), mean_correct(identity)
    return precision, recall, 2 * precision * recall / (precision + recall)


def purity_loop(cluster, identity):
    total = 0
    for name in set(cluster):
        inside = [i for c, i in zip(cluster, identity, strict=True) if c == name]
        total += max(inside.count(i) for i in inside)
    return total / len(cluster)


def average_linkage_loop(dist, cut, must=(), cannot=()):
    """UPGMA from its definition: the groups with the smallest mean distance merge, up to a cut."""
    groups = [{row} for row in range(len(dist))]
    for a, b in must:
        first, second = (next(g for g in groups if row in g) for row in (a, b))
        if first is not second:
            groups = [g for g in groups if g not in (first, second)] + [first | second]
    while True:
        best = (cut, None, None)
        for one in groups:
            for other in groups:
                apart = any(
                    (a in one and b in other) or (b in one and a in other) for a, b in cannot
                )
                if one is other or apart:
                    continue
                mean = sum(dist[a][b] for a in one for b in other) / (len(one) * len(other))
                if mean <= best[0]:
                    best = (mean, one, other)
        if best[1] is None:
            return groups
        groups = [g for g in groups if g not in best[1:]] + [best[1] | best[2]]


# --- model: distances one by one -------------------------------------------------------------


def distance_of(name, a, b, parts):
    """The distance of two embeddings by its definition; `parts` holds a comparator's weights."""
    difference = [x - y for x, y in zip(a, b, strict=True)]
    square = sum(d * d for d in difference)
    if name == "euclidean":
        return math.sqrt(square)
    if name == "squared-euclidean":
        return square
    if name == "cosine":
        lengths = math.hypot(*a) * math.hypot(*b)
        return 1 - sum(x * y for x, y in zip(a, b, strict=True)) / lengths
    if name == "sigmoid":
        return math.exp(parts["log_scale"]) * math.sqrt(square)

    def logit(absolute):
        total = parts["out.bias"][0]
        for weights, bias, out in zip(
            parts["hidden.weight"], parts["hidden.bias"], parts["out.weight"][0], strict=True
        ):
            value = bias + sum(w * d for w, d in zip(weights, absolute, strict=True))
            total += out * max(value, 0)
        return total

    return max(0.0, logit([0.0] * len(a)) - logit([abs(d) for d in difference]))


# --- measure: galleries ----------------------------------------------------------------------


def rank_list_loop(dist, code, rule, voters=5):
    """All identities of one probe, best first: (code, distance) by the definition of the rule."""
    near = {}
    for d, c in zip(dist, code, strict=True):
        if d < math.inf:
            near[c] = min(d, near.get(c, math.inf))
    votes = dict.fromkeys(near, 0)
    if rule == "vote":
        templates = sorted((d, c) for d, c in zip(dist, code, strict=True) if d < math.inf)
        for _, c in templates[:voters]:
            votes[c] += 1
    return [(c, near[c]) for c in sorted(near, key=lambda c: (-votes[c], near[c], c))]


def mean_loop(rows):
    return [math.fsum(column) / len(rows) for column in zip(*rows, strict=True)]


def rank_in_gallery_loop(probe, gallery, rule):
    """`gallery` holds (embedding, code); Euclidean distances."""
    if rule == "mean":
        codes = sorted({c for _, c in gallery})
        gallery = [(mean_loop([e for e, c in gallery if c == code]), code) for code in codes]
    dist = [math.dist(probe, e) for e, _ in gallery]
    return rank_list_loop(dist, [c for _, c in gallery], rule)


def leave_one_out_gallery(emb, code, rule):
    """For each template: its code, the list without itself, and the list without its identity."""
    gallery = list(zip(emb, code, strict=True))
    found = []
    for row, (probe, own) in enumerate(gallery):
        others = gallery[:row] + gallery[row + 1 :]
        strangers = [(e, c) for e, c in gallery if c != own]
        found.append(
            (
                own,
                rank_in_gallery_loop(probe, others, rule),
                rank_in_gallery_loop(probe, strangers, rule),
            )
        )
    return found


def smallest_margin_loop(gap, wrong):
    """The smallest of 0 and the gaps that leaves one wrong answer in ten, of ten or more."""
    if len(gap) < 10:
        return 0.0
    for margin in sorted({0.0, *gap}):
        kept = [w for g, w in zip(gap, wrong, strict=True) if g >= margin]
        if len(kept) >= 10 and sum(kept) <= 0.1 * len(kept):
            return margin
    return None


def open_set_loop(right, mated, stranger, target):
    """DIR at the FPIR: mated and stranger are distances of the best identities."""
    threshold = strictest_threshold(stranger, target)
    hits = [r and d <= threshold for r, d in zip(right, mated, strict=True)]
    return sum(hits) / len(hits)
