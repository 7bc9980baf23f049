// The page's place is in the fragment of its address: paths of the server belong to its API.
export const route = $state<{ parts: string[] }>({ parts: parse() });

function parse(): string[] {
  const parts = location.hash.replace(/^#\/?/, '').split('/');
  return parts.map((part) => {
    try {
      return decodeURIComponent(part);
    } catch {
      return part;
    }
  });
}

window.addEventListener('hashchange', () => {
  route.parts = parse();
  window.scrollTo(0, 0);
});

export const href = (...parts: string[]): string => '#/' + parts.map(encodeURIComponent).join('/');

export function go(...parts: string[]): void {
  location.hash = href(...parts);
}
