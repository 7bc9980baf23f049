import { APIError, proof, sandboxPath } from './api';

// Stream is a connection to a program in a sandbox. It survives broken connections: its
// output has positions, and a session keeps it for a while without a connection.

interface Size {
  cols: number;
  rows: number;
}

// First is what a stream begins with: a program that it starts, and that ends with it, or
// one that runs already, whose output it follows from the first byte that is kept.
export type First =
  | { type: 'start'; cmd: string; args: string[]; env?: Record<string, string>; user?: string; pty?: Size }
  | { type: 'attach'; pid: number; offset: 0 };

export const loginShell = (size: Size): First => ({
  type: 'start', cmd: '/bin/sh', args: ['-c', 'command -v bash >/dev/null && exec bash -l; exec sh -l'], env: { TERM: 'xterm-256color' }, pty: size,
});

export interface Handlers {
  output(data: Uint8Array): void;
  state(state: 'connecting' | 'open' | 'lost' | 'ended', text: string): void;
}

const ackEvery = 64 << 10; // bytes of output
const maxTries = 8;

interface Frame {
  type: string;
  data?: string;
  encoding?: string;
  offset?: number;
  input?: number;
  lost?: number;
  code?: string;
  status?: string;
}

export class Stream {
  #socket: WebSocket | null = null;
  #session = Array.from(crypto.getRandomValues(new Uint8Array(16)), (b) => b.toString(16).padStart(2, '0')).join('');
  #started = false;
  #over = false;
  #received = 0;
  #acked = 0;
  #sent: Uint8Array[] = []; // input that the program has not read, from position #read on
  #read = 0;
  #tries = 0;
  #size: Size | undefined;
  #timer = 0;

  constructor(
    readonly id: string,
    readonly first: First,
    readonly handlers: Handlers,
  ) {
    this.#size = first.type === 'start' ? first.pty : undefined;
    this.#connect();
  }

  #connect(): void {
    this.handlers.state('connecting', '');
    const address = location.origin.replace(/^http/, 'ws') + sandboxPath(this.id, '/exec/stream');
    const socket = new WebSocket(address, ['wrenn.exec.v1', `wrenn.session.${proof()}`]);
    this.#socket = socket;
    socket.onopen = () => {
      const session = { session: this.#session, hold_sec: 600 };
      if (this.#started) this.#send({ type: 'attach', offset: this.#received, ...session });
      else this.#send({ ...this.first, ...session });
    };
    socket.onmessage = (e) => this.#take(JSON.parse(String(e.data)) as Frame);
    socket.onclose = () => {
      if (this.#over || this.#socket !== socket) return;
      if (++this.#tries > maxTries) {
        this.#end('The connection is lost, and could not be made again.');
        return;
      }
      this.handlers.state('lost', 'The connection is lost. Connecting again…');
      this.#timer = window.setTimeout(() => this.#connect(), Math.min(8000, 300 * 2 ** this.#tries));
    };
  }

  #take(frame: Frame): void {
    switch (frame.type) {
      case 'start':
        this.#begin(frame);
        break;
      case 'pty':
      case 'stdout':
      case 'stderr': {
        const bytes = frame.encoding ? Uint8Array.from(atob(frame.data ?? ''), (c) => c.charCodeAt(0)) : new TextEncoder().encode(frame.data);
        this.#received = (frame.offset ?? this.#received) + bytes.length;
        this.handlers.output(bytes);
        break;
      }
      case 'input':
        this.#drop(frame.offset ?? 0);
        break;
      case 'exit':
        this.#end(`It has ended: ${frame.status ?? ''}`);
        break;
      case 'error':
        if (frame.code === 'unavailable' && this.#started) break; // the close follows, then another connection
        this.#end(frame.data ?? 'The program cannot be reached.');
        break;
    }
  }

  #begin(frame: Frame): void {
    this.#tries = 0;
    if (this.#started) {
      this.#received = frame.offset ?? this.#received;
      this.#drop(frame.input ?? this.#read);
      for (const bytes of this.#sent) this.#input(bytes);
      if (frame.lost) this.handlers.output(new TextEncoder().encode(`\r\n[${frame.lost} bytes are lost]\r\n`));
    }
    this.#started = true;
    if (this.#size) this.#send({ type: 'resize', ...this.#size });
    this.handlers.state('open', '');
  }

  // arrived acknowledges output that the terminal has shown.
  arrived(): void {
    if (this.#received - this.#acked < ackEvery) return;
    this.#acked = this.#received;
    this.#send({ type: 'ack', offset: this.#acked });
  }

  // drop forgets input before a position.
  #drop(until: number): void {
    while (this.#sent[0] && this.#read + this.#sent[0].length <= until) this.#read += this.#sent.shift()!.length;
    const first = this.#sent[0];
    if (first && until > this.#read) {
      this.#sent[0] = first.subarray(until - this.#read);
      this.#read = until;
    }
  }

  write(text: string): void {
    this.writeBytes(new TextEncoder().encode(text));
  }

  writeBytes(bytes: Uint8Array): void {
    if (this.#over) return;
    this.#sent.push(bytes);
    if (this.#started) this.#input(bytes);
  }

  #input(bytes: Uint8Array): void {
    let text = '';
    for (const b of bytes) text += String.fromCharCode(b);
    this.#send({ type: 'stdin', data: btoa(text), encoding: 'base64' });
  }

  resize(cols: number, rows: number): void {
    this.#size = { cols, rows };
    if (this.#started) this.#send({ type: 'resize', cols, rows });
  }

  #send(frame: unknown): void {
    if (this.#socket?.readyState === WebSocket.OPEN) this.#socket.send(JSON.stringify(frame));
  }

  #end(text: string): void {
    this.#over = true;
    this.handlers.state('ended', text);
    this.#socket?.close();
  }

  // close ends a program that the stream has started, as a terminal's window does.
  close(): void {
    clearTimeout(this.#timer);
    if (!this.#over) {
      if (this.first.type === 'start') this.#send({ type: 'signal', signal: 'SIGKILL' });
      this.#send({ type: 'leave' });
    }
    this.#over = true;
    this.#socket?.close();
  }
}

// unavailable reports whether an error says that the sandbox cannot be used now.
export const unavailable = (e: unknown): boolean => e instanceof APIError && (e.status === 409 || e.status === 503);
