/** A bar chart of the time that the process stood still, as SVG: a bar is a median, the line through it the spread. */
import { formatSize } from '../size.ts'
import { type Lane, median } from './interleaved-runs.ts'

const BAR = 18
const GAP = 8
const LEFT = 190
const WIDTH = 420
const TOP = 30
const RIGHT = 70

export function plot(lanes: readonly Lane[], title: string): string {
  const most = Math.max(...lanes.flatMap(({ results }) => results.map(({ downtime }) => downtime)))
  const x = (seconds: number): number => LEFT + (seconds / most) * WIDTH
  const bars = lanes.map(({ name, bytes, results }, index) => {
    const values = results.map(({ downtime }) => downtime)
    const top = TOP + index * (BAR + GAP)
    const middle = top + BAR / 2
    return [
      `<text x="${LEFT - 8}" y="${middle + 4}" text-anchor="end">${xmlText(name)}, ${formatSize(bytes)}</text>`,
      `<rect x="${LEFT}" y="${top}" width="${(x(median(values)) - LEFT).toFixed(1)}" height="${BAR}" ` +
        `fill="${name === 'ferry' ? '#2a6' : '#999'}"/>`,
      `<path d="M${x(Math.min(...values)).toFixed(1)} ${middle}H${x(Math.max(...values)).toFixed(1)}" stroke="#000"/>`,
      `<text x="${(x(Math.max(...values)) + 6).toFixed(1)}" y="${middle + 4}">${median(values).toFixed(2)} s</text>`,
    ].join('\n')
  })
  const height = TOP + lanes.length * (BAR + GAP)
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" width="${LEFT + WIDTH + RIGHT}" height="${height}" ` +
      `font-family="sans-serif" font-size="12">`,
    `<title>${xmlText(title)}</title>`,
    `<text x="8" y="18">${xmlText(title)}</text>`,
    ...bars,
    '</svg>\n',
  ].join('\n')
}

function xmlText(text: string): string {
  return text.replaceAll('&', '&amp;').replaceAll('<', '&lt;')
}
