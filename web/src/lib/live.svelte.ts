import { SvelteMap } from 'svelte/reactivity';
import { APIError, send, type Sandbox, type Schemas } from './api';

// live has the team's sandboxes as one event stream tells them: those that have not
// ended, and those that ended while this page watched.
export const live = $state<{ state: 'connecting' | 'live' | 'lost'; known: boolean; problem: string }>({
  state: 'connecting',
  known: false,
  problem: '',
});
export const sandboxes = new SvelteMap<string, Sandbox>();

// TeamEvent is a sandbox that came, or whose state changed.
export interface TeamEvent {
  seq: number;
  at: string;
  id: string;
  template: string;
  from: string; // '' if it is new
  to: string;
  why: string;
}

// events has what the stream has told since this page was loaded, newest first.
export const events = $state<{ list: TeamEvent[]; most: number }>({ list: [], most: 500 });
let lastEvent = 0;
const states = new Map<string, string>(); // of sandboxes, as the stream told them

// witness records an event if the stream tells another state than before.
function witness(s: Sandbox): void {
  const from = states.get(s.id) ?? '';
  if (from === s.status) return;
  states.set(s.id, s.status);
  if (!live.known) return; // the first snapshot tells what is, not what happened
  events.list = [{ seq: ++lastEvent, at: s.last_updated, id: s.id, template: s.template, from, to: s.status, why: s.reason ?? s.end_cause ?? '' }, ...events.list].slice(0, events.most);
}

// clock ticks once a second, for times that are left.
export const clock = $state({ now: Date.now() });
setInterval(() => {
  if (!document.hidden) clock.now = Date.now();
}, 1000);

export const ended = (s: Sandbox): boolean => s.status === 'stopped' || s.status === 'failed';

// tell records a sandbox that an answer has shown, before the stream does.
export function tell(one: Sandbox): void {
  const had = sandboxes.get(one.id);
  if (!had || one.last_updated >= had.last_updated) sandboxes.set(one.id, { ...had, ...one });
}

let stop: AbortController | null = null;

// watch follows the stream until unwatch is called. Hidden pages leave it, because
// browsers open few connections to a server.
export function watch(): void {
  if (stop) return;
  stop = new AbortController();
  void follow(stop.signal);
}

export function unwatch(): void {
  stop?.abort();
  stop = null;
  sandboxes.clear();
  states.clear();
  events.list = [];
  live.known = false;
  live.state = 'connecting';
}

async function follow(signal: AbortSignal): Promise<void> {
  for (let failures = 0; !signal.aborted; failures++) {
    await visible(signal);
    try {
      await read(signal, () => (failures = 0));
      live.problem = '';
    } catch (e) {
      if (signal.aborted || (e instanceof APIError && e.status === 401)) return;
      live.problem = e instanceof Error ? e.message : String(e);
    }
    if (signal.aborted) return;
    live.state = document.hidden ? 'connecting' : 'lost';
    if (!document.hidden) await new Promise((done) => setTimeout(done, Math.min(15000, 500 * 2 ** failures)));
  }
}

function visible(signal: AbortSignal): Promise<void> {
  return new Promise((done) => {
    const look = () => {
      if (document.hidden && !signal.aborted) return;
      document.removeEventListener('visibilitychange', look);
      signal.removeEventListener('abort', look);
      done();
    };
    document.addEventListener('visibilitychange', look);
    signal.addEventListener('abort', look);
    look();
  });
}

const hiddenFor = 60_000; // until a hidden page leaves the stream

async function read(signal: AbortSignal, begun: () => void): Promise<void> {
  const leave = new AbortController();
  let timer = 0;
  const look = () => {
    clearTimeout(timer);
    if (document.hidden) timer = window.setTimeout(() => leave.abort(), hiddenFor);
  };
  document.addEventListener('visibilitychange', look);
  try {
    const answer = await send('GET', '/v1/events', { signal: AbortSignal.any([signal, leave.signal]) });
    const reader = answer.body!.pipeThrough(new TextDecoderStream()).getReader();
    for (let rest = ''; ; ) {
      const { value, done } = await reader.read();
      if (done) return;
      const blocks = (rest + value).split('\n\n');
      rest = blocks.pop()!;
      for (const block of blocks) {
        take(block);
        begun();
      }
    }
  } catch (e) {
    if (!leave.signal.aborted) throw e;
  } finally {
    clearTimeout(timer);
    document.removeEventListener('visibilitychange', look);
  }
}

function take(block: string): void {
  let name = '';
  let data = '';
  for (const line of block.split('\n')) {
    if (line.startsWith('event: ')) name = line.slice(7);
    if (line.startsWith('data: ')) data += line.slice(6);
  }
  if (!data) return;
  const changes = JSON.parse(data) as Schemas['SandboxChanges'];
  if (name === 'snapshot') {
    const there = new Set(changes.sandboxes.map((s) => s.id));
    for (const [id, s] of sandboxes) if (!there.has(id) && !ended(s)) sandboxes.delete(id);
  }
  for (const s of changes.sandboxes) {
    witness(s);
    sandboxes.set(s.id, { ...sandboxes.get(s.id), ...s });
  }
  for (const id of changes.dropped) {
    sandboxes.delete(id);
    states.delete(id);
  }
  live.state = 'live';
  live.known = true;
}
