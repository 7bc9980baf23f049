import type { Sandbox } from './api';

export const mib = (n: number): string => (n >= 1024 && n % 512 === 0 ? `${n / 1024} GiB` : `${n} MiB`);

export function bytes(n: number): string {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let unit = 0;
  for (; n >= 1024 && unit < units.length - 1; unit++) n /= 1024;
  return `${unit === 0 || n >= 100 ? Math.round(n) : n.toFixed(1)} ${units[unit]}`;
}

// span is a duration in at most two units.
export function span(ms: number): string {
  const s = Math.max(0, Math.round(ms / 1000));
  if (s < 60) return `${s} s`;
  if (s < 3600) return s % 60 ? `${Math.floor(s / 60)} min ${s % 60} s` : `${s / 60} min`;
  if (s < 86400) return s % 3600 >= 60 ? `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min` : `${Math.floor(s / 3600)} h`;
  return s % 86400 >= 3600 ? `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h` : `${Math.floor(s / 86400)} d`;
}

export function ago(when: string | undefined, now: number): string {
  if (!when) return '';
  const ms = now - Date.parse(when);
  if (ms < 5000) return 'just now';
  if (ms < 60_000) return `${Math.round(ms / 1000)} s ago`;
  if (ms < 3_600_000) return `${Math.floor(ms / 60_000)} min ago`;
  if (ms < 86_400_000) return `${Math.floor(ms / 3_600_000)} h ago`;
  return `${Math.floor(ms / 86_400_000)} d ago`;
}

export const moment = (when: string | undefined): string =>
  when ? new Date(when).toLocaleString(undefined, { dateStyle: 'medium', timeStyle: 'medium' }) : '';

// Escape sequences and control characters mean nothing outside of a terminal.
// eslint-disable-next-line no-control-regex
export const plain = (raw: string): string => raw.replace(/\x1b(\[[0-9;?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)|.)/g, '').replace(/[^\n\t\x20-\x7e\u00a0-\uffff]/g, '');

// endsAt is when a sandbox's timeout ends it, in milliseconds; 0 is never.
export function endsAt(s: Sandbox): number {
  if (s.status !== 'running') return 0;
  if (s.ends_at) return Date.parse(s.ends_at);
  if (!s.timeout_sec || !s.last_active_at) return 0;
  return Date.parse(s.last_active_at) + s.timeout_sec * 1000;
}

export const shortID = (id: string): string => id.slice(0, 9);
