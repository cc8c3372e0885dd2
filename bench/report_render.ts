// Plots as SVG text. vega is big and for development alone, so it is loaded when a plot is drawn, and may not be there.

/** A vega-lite specification. */
export type Spec = Record<string, unknown>;

export interface Plot {
  /** Part of its file's name. */
  name: string;
  caption: string;
  spec: Spec;
}

/** The looks that all plots share. */
export const CONFIG = {
  font: 'sans-serif',
  view: { stroke: '#ccc' },
  axis: { labelFontSize: 11, titleFontSize: 12, titleFontWeight: 'normal', gridColor: '#e6e6e6', titlePadding: 8 },
  legend: { labelFontSize: 11, titleFontSize: 11, titleFontWeight: 'normal', labelLimit: 420, symbolStrokeWidth: 2 },
  header: { labelFontSize: 12, titleFontSize: 12, titleFontWeight: 'normal' },
  title: { fontSize: 14, anchor: 'start', offset: 12, subtitleFontSize: 11, subtitleColor: '#555' },
};

async function loadVega() {
  try {
    return { vega: await import('vega'), vegaLite: await import('vega-lite') };
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ERR_MODULE_NOT_FOUND') throw error;
    throw new Error(
      'the report draws its plots with vega and vega-lite, which are not installed: npm install vega vega-lite',
    );
  }
}

/** One SVG for each specification, without an XML declaration, so that it can stand in a page. */
export async function renderPlots(specs: readonly Spec[]): Promise<string[]> {
  const { vega, vegaLite } = await loadVega();
  // Without a canvas vega takes a letter for 0.8 of its height: too much, so that labels are cut which would fit.
  const textMetrics = (
    vega as unknown as { textMetrics: { width: (item: { fontSize?: number }, text: string) => number } }
  ).textMetrics;
  textMetrics.width = ({ fontSize = 11 }, text) => 0.62 * fontSize * String(text ?? '').length;
  const svgs: string[] = [];
  for (const spec of specs) {
    const compiled = vegaLite.compile(spec as unknown as Parameters<typeof vegaLite.compile>[0]).spec;
    for (const legend of compiled.legends ?? []) delete legend.strokeDash; // it would dash the outlines of the symbols
    const view = new vega.View(vega.parse(compiled), { renderer: 'none', logLevel: vega.Error });
    try {
      svgs.push(ownIds(await view.toSVG(), svgs.length));
    } finally {
      view.finalize();
    }
  }
  return svgs;
}

/** Ids are one space in a page, and each SVG counts its own from 0. */
const ownIds = (svg: string, plot: number): string =>
  svg.replace(/(\bid="|url\(#|href="#)(?=[A-Za-z])/g, `$1plot${plot}-`);
