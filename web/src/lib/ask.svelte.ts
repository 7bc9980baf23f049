// Questions to the person, and short notices: one of each at a time, shown by the shell.

export interface Question {
  title: string;
  text: string;
  verb: string;
  danger?: boolean;
  input?: { label: string; value: string };
}

export const asked = $state<{ question: Question | null; answer: ((ok: string | null) => void) | null }>({ question: null, answer: null });

// ask returns null if the person does not want it, else the text of the input.
export function ask(question: Question): Promise<string | null> {
  asked.answer?.(null);
  return new Promise((done) => {
    asked.question = question;
    asked.answer = (ok) => {
      asked.question = asked.answer = null;
      done(ok);
    };
  });
}

export const notices = $state<{ id: number; text: string; bad: boolean }[]>([]);
let last = 0;

export function notify(text: string, bad = false): void {
  const id = ++last;
  notices.push({ id, text, bad });
  if (notices.length > 4) notices.shift();
  setTimeout(() => dismiss(id), bad ? 12000 : 4000);
}

export function dismiss(id: number): void {
  const at = notices.findIndex((n) => n.id === id);
  if (at >= 0) notices.splice(at, 1);
}
