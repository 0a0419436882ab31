/* How results of the search are ordered: pages before names, how-tos before rooms, what belongs to a class last. */
var Scorer = {
  score: ([page, , , description, score, , kind]) => {
    if (kind === SearchResultKind.object) return score - (/^Python (attribute|method|property)/.test(description) ? 15 : 0);
    return score + (/^(0|howto)/.test(page) ? 2 : 0);
  },
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: { 0: 5, 1: 0, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};
