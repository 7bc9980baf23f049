import { APIError, call, sandboxPath, said, type Sandbox, type Schemas } from './api';
import { ask, notify } from './ask.svelte';
import { sandboxes, tell } from './live.svelte';

export type Action = 'pause' | 'resume' | 'delete';

export const allows = (action: Action, s: Sandbox): boolean =>
  action === 'pause' ? s.status === 'running' : action === 'resume' ? s.status === 'paused' : s.status !== 'stopped' && s.status !== 'failed' && s.status !== 'stopping';

async function one(action: Action, s: Sandbox): Promise<void> {
  if (action !== 'delete') {
    tell(await call<Sandbox>('POST', sandboxPath(s.id, `/${action}`)));
    return;
  }
  try {
    await call('DELETE', sandboxPath(s.id));
  } catch (e) {
    if (!(e instanceof APIError && e.status === 404)) throw e;
  }
}

const doing = { pause: 'Pausing', resume: 'Resuming', delete: 'Deleting' };
const done = { pause: 'Paused', resume: 'Resumed', delete: 'Deleted' };
const atOnce = 8; // requests

// act does the same to each of the sandboxes that allow it, asks before it deletes,
// and says what failed. It reports whether all of it was done.
export async function act(action: Action, all: Sandbox[]): Promise<boolean> {
  const some = all.filter((s) => allows(action, s));
  const first = some[0];
  if (!first) return true;
  if (action === 'delete') {
    const what = some.length === 1 ? `sandbox ${first.id}` : `${some.length} sandboxes`;
    const ok = await ask({
      title: `Delete ${what}?`, danger: true, verb: 'Delete',
      text: 'Programs end, and memory, disk and checkpoints are lost. This cannot be undone.',
    });
    if (ok === null) return false;
  }
  if (some.length > 1) notify(`${doing[action]} ${some.length} sandboxes…`);
  const problems: string[] = [];
  const queue = [...some];
  const work = async () => {
    for (let s = queue.shift(); s; s = queue.shift()) {
      try {
        await one(action, s);
      } catch (e) {
        problems.push(`${s.id}: ${said(e)}`);
      }
    }
  };
  await Promise.all(Array.from({ length: atOnce }, work));
  if (problems.length) {
    notify(`${problems.length} of ${some.length} failed. ${problems.slice(0, 2).join(' ')}`, true);
  } else {
    notify(some.length === 1 ? `${done[action]} ${first.id}` : `${done[action]} ${some.length} sandboxes`);
  }
  return problems.length === 0;
}

// attempt tells the person if f fails.
export async function attempt<T>(f: () => Promise<T>): Promise<T | undefined> {
  try {
    return await f();
  } catch (e) {
    notify(said(e), true);
    return undefined;
  }
}

export async function fork(s: Sandbox, count: number): Promise<Sandbox[]> {
  const forked = await attempt(() => call<Schemas['Forked']>('POST', sandboxPath(s.id, '/fork'), { body: { count } }));
  for (const copy of forked?.sandboxes ?? []) sandboxes.set(copy.id, copy);
  for (const failed of forked?.errors ?? []) notify(`A copy failed: ${failed.message}`, true);
  return forked?.sandboxes ?? [];
}
