export type Theme = 'system' | 'light' | 'dark';

const stored = localStorage.getItem('wrenn.theme');
export const theme = $state<{ value: Theme }>({ value: stored === 'light' || stored === 'dark' ? stored : 'system' });

// applyTheme shows the page in the theme. The style sheet uses light-dark().
export function applyTheme(): void {
  document.documentElement.dataset.theme = theme.value;
}

export function nextTheme(): void {
  theme.value = theme.value === 'system' ? 'dark' : theme.value === 'dark' ? 'light' : 'system';
  localStorage.setItem('wrenn.theme', theme.value);
  applyTheme();
}
