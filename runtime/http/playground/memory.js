// The conversation across a reload: in this tab's session storage, within a bound, until "New chat".

const PLACE = "shoal.chat";
const MOST = 1_500_000; // characters, two bytes each; browsers give a site five million bytes or more

/** Keep a talk: its newest turns, those that are too long without their canvases. */
export function keep(talk) {
  const turns = [];
  let left = MOST;
  for (const turn of [...talk.turns].reverse()) {
    const answers = turn.answers.map((answer) => ({ ...answer, snapshot: undefined }));
    const text = [turn, { ...turn, answers }].map((one) => JSON.stringify(one)).find((one) => one.length <= left);
    if (!text) break;
    left -= text.length;
    turns.unshift(text);
  }
  try {
    sessionStorage.setItem(PLACE, JSON.stringify({ ...talk, turns }));
  } catch { /* Storage is full or switched off: the page works without it. */ }
}

/** What was kept of a chat with this model; null if nothing was. */
export function recall(model) {
  const talk = JSON.parse(sessionStorage.getItem(PLACE));
  return talk?.model === model ? { ...talk, turns: talk.turns.map((turn) => JSON.parse(turn)) } : null;
}
