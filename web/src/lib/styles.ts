// Libraries for terminals and editors make their styles as <style> elements, which the
// page's policy refuses. adoptStyles gives them elements whose text goes into a
// constructed style sheet instead, which is the page's own.
let adopted = false;

export function adoptStyles(): void {
  if (adopted) return;
  adopted = true;
  const create = document.createElement.bind(document);
  document.createElement = ((name: string, options?: ElementCreationOptions) =>
    name.toLowerCase() === 'style' ? sheetElement(create('template')) : create(name, options)) as typeof document.createElement;
}

function sheetElement(element: HTMLElement): HTMLElement {
  const sheet = new CSSStyleSheet();
  document.adoptedStyleSheets.push(sheet);
  let text = '';
  const remove = element.remove.bind(element);
  Object.defineProperties(element, {
    sheet: { value: sheet },
    textContent: {
      get: () => text,
      set: (value: string) => {
        text = value;
        sheet.replaceSync(value);
      },
    },
    remove: {
      value: () => {
        document.adoptedStyleSheets = document.adoptedStyleSheets.filter((s) => s !== sheet);
        remove();
      },
    },
  });
  return element;
}
