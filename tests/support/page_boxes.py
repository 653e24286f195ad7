"""What a page in a browser shows that touches or is cut: for tests of pages. No test lives here.

`BOXES` is a JavaScript expression: `{"boxes": how many pieces of text are to be seen, "touching": pairs of them that
overlap, "cut": those that reach beyond what clips them, or beyond the page, "near": cards that stand one on another
without room between them}`. What may be scrolled is not cut, but for paper; an answer's first line ends in an ellipsis
on purpose.
"""

from __future__ import annotations

BOXES = """(() => {
  const shown = (e) => e.checkVisibility({ checkOpacity: true, checkVisibilityCSS: true });
  const within = (a, b) => ({ left: Math.max(a.left, b.left), right: Math.min(a.right, b.right),
    top: Math.max(a.top, b.top), bottom: Math.min(a.bottom, b.bottom) });
  const paper = matchMedia('print').matches;
  const boxes = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let n = walk.nextNode(); n; n = walk.nextNode()) {
    if (!n.data.trim() || !shown(n.parentElement)) continue;
    if (n.parentElement.closest('script,style,title')) continue;
    const range = document.createRange(); range.selectNodeContents(n);
    let clip = { left: -1e9, right: 1e9, top: -1e9, bottom: 1e9 };
    let scrolls = false;
    for (let e = n.parentElement; e; e = e.parentElement) {
      const s = getComputedStyle(e);
      const clips = e.ownerSVGElement === undefined && s.overflowX !== 'visible';
      if (clips && e !== document.documentElement && e !== document.body) {
        const r = e.getBoundingClientRect();
        if (/auto|scroll/.test(s.overflowX)) scrolls = !paper;
        clip = within(clip, r);
      }
    }
    const gist = Boolean(n.parentElement.closest('.gist, .ids, blockquote, pre'));
    for (const r of range.getClientRects()) {
      if (r.width < 1 || r.height < 1) continue;
      boxes.push({ n, words: n.data.trim().slice(0, 40), r, clip, scrolls, gist });
    }
  }
  const touching = [], cut = [];
  const wide = document.documentElement.clientWidth;
  for (const { words, r, clip, scrolls, gist } of boxes) {
    if (gist) continue;
    const sides = r.left < clip.left - 1 || r.right > clip.right + 1;
    if (!scrolls && (sides || r.top < clip.top - 2 || r.bottom > clip.bottom + 2)) cut.push(words);
    else if (!scrolls && (r.left < -1 || r.right > wide + 1)) cut.push('beyond the page: ' + words);
  }
  boxes.sort((a, b) => a.r.top - b.r.top);
  for (let i = 0; i < boxes.length; i++) {
    const a = boxes[i];
    for (let k = i + 1; k < boxes.length && boxes[k].r.top < a.r.bottom; k++) {
      const b = boxes[k];
      if (a.n === b.n) continue;
      const both = within(within(a.r, a.clip), within(b.r, b.clip));
      if (both.right - both.left > 1.5 && both.bottom - both.top > 5) touching.push(a.words + ' | ' + b.words);
    }
  }
  const near = [];
  const cards = [...document.querySelectorAll('.panel')].filter(shown);
  const name = (card) => card.textContent.trim().slice(0, 30);
  for (const one of cards) for (const other of cards) {
    const [a, b] = [one, other].map((card) => card.getBoundingClientRect());
    const above = Math.min(a.right, b.right) - Math.max(a.left, b.left) > 20;
    const gap = b.top - a.bottom;
    if (one !== other && above && gap > -1 && gap < 8) near.push(name(one) + ' | ' + name(other));
  }
  return { boxes: boxes.length, touching, cut, near };
})()"""
