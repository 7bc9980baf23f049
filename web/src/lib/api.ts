import type { components } from './contract';

export type Schemas = components['schemas'];
export type Sandbox = Schemas['Sandbox'];
export type State = Schemas['State'];
export type Identity = Schemas['Identity'];
export type Checkpoint = Schemas['Checkpoint'];
export type Template = Schemas['Template'];
export type Build = Schemas['Generation'];
export type Key = Schemas['Key'];

// The proof is half of the session. The other half is a cookie that no script reads.
// Neither is of use alone, so the proof may be kept where all tabs of this origin see it.
const proofKey = 'wrenn.proof';

export const proof = (): string => localStorage.getItem(proofKey) ?? '';

export function keepProof(value: string): void {
  if (value) localStorage.setItem(proofKey, value);
  else localStorage.removeItem(proofKey);
}

// APIError is an error that the server answered, in its own words.
export class APIError extends Error {
  constructor(
    readonly status: number,
    readonly code: string,
    message: string,
  ) {
    super(message);
  }
}

let unauthorized = () => {};

// onUnauthorized sets what happens when the server does not know the session any more.
export function onUnauthorized(f: () => void): void {
  unauthorized = f;
}

interface Options {
  body?: unknown; // sent as JSON
  form?: FormData;
  signal?: AbortSignal;
}

// send returns an answer with a status below 300, and throws an APIError for others.
export async function send(method: string, path: string, options: Options = {}): Promise<Response> {
  const headers: Record<string, string> = { 'X-Wrenn-Session': proof() };
  let body: BodyInit | undefined = options.form;
  if (options.body !== undefined) {
    headers['Content-Type'] = 'application/json';
    body = JSON.stringify(options.body);
  }
  let answer: Response;
  try {
    answer = await fetch(path, { method, headers, body, signal: options.signal, cache: 'no-store' });
  } catch (e) {
    if (options.signal?.aborted) throw e;
    throw new APIError(0, 'unreachable', 'The server cannot be reached.');
  }
  if (answer.ok) return answer;
  let code = 'unknown';
  let message = `The server answered ${answer.status}.`;
  try {
    const { error } = (await answer.json()) as Schemas['Error'];
    code = error.code;
    message = error.message;
  } catch {
    // A proxy answered, in its own form.
  }
  if (answer.status === 401 && path !== '/v1/session') unauthorized();
  throw new APIError(answer.status, code, message);
}

// call is send for an answer in JSON, or for one without a body.
export async function call<T = void>(method: string, path: string, options: Options = {}): Promise<T> {
  const answer = await send(method, path, options);
  return (answer.status === 204 ? undefined : await answer.json()) as T;
}

export const sandboxPath = (id: string, rest = ''): string => `/v1/sandboxes/${encodeURIComponent(id)}${rest}`;

// said is what people are told about an error.
export function said(e: unknown): string {
  const text = e instanceof Error ? e.message : String(e);
  return text.charAt(0).toUpperCase() + text.slice(1);
}
