import { APIError, call, keepProof, onUnauthorized, proof, type Identity, type Schemas } from './api';

// session is who has signed in; null is no user, undefined not known yet.
export const session = $state<{ who: Identity | null | undefined; problem: string }>({ who: undefined, problem: '' });

onUnauthorized(() => {
  keepProof('');
  session.who = null;
});

export async function resume(): Promise<void> {
  if (!proof()) {
    session.who = null;
    return;
  }
  try {
    session.who = await call<Identity>('GET', '/v1/session');
  } catch (e) {
    session.who = null;
    if (e instanceof APIError && e.status === 401) keepProof('');
    else session.problem = e instanceof Error ? e.message : String(e);
  }
}

export async function signIn(key: string): Promise<void> {
  const signedIn = await call<Schemas['SignedIn']>('POST', '/v1/session', { body: { key } });
  keepProof(signedIn.proof);
  session.problem = '';
  session.who = signedIn;
}

export async function signOut(): Promise<void> {
  try {
    await call('DELETE', '/v1/session');
  } catch {
    // It has ended already, or ends by itself.
  }
  keepProof('');
  session.who = null;
}

export const may = (scope: string): boolean => !!session.who?.scopes.some((s) => s === scope || s === 'admin');
