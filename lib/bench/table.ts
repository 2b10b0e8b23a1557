/** Results as people read them. */
import { formatSize } from '../size.ts'
import { type Lane, median, type Result, spread } from './interleaved-runs.ts'
import type { Machine } from './machine.ts'

type Figure = keyof Result

interface Column {
  title: string
  width: number
  show(lane: Lane, lanes: readonly Lane[]): string
}

const middle = (lane: Lane, figure: Figure): number | undefined => {
  const values = lane.results.map((result) => result[figure]).filter((value) => value !== undefined)
  return values.length === 0 ? undefined : median(values)
}

const shown = (figure: Figure, format: (value: number, lane: Lane) => string) => (lane: Lane) => {
  const value = middle(lane, figure)
  return value === undefined ? '' : format(value, lane)
}
const seconds = (value: number): string => value.toFixed(2)
const perGiB = (value: number, { bytes }: Lane): string => (value / (bytes / 2 ** 30)).toFixed(2)
const mib = (value: number): string => `${Math.round(value / 2 ** 20)}`
const against = (name: string, figure: Figure) => (lane: Lane, lanes: readonly Lane[]) => {
  const other = lanes.find((candidate) => candidate.name === name && candidate.bytes === lane.bytes)
  const [ours, theirs] = [middle(lane, figure), other && middle(other, figure)]
  return ours === undefined || theirs === undefined || other === lane ? '' : (ours / theirs).toFixed(2)
}

/** What a cache takes without making memory ready. */
const lessAhead = (lane: Lane): string => {
  const [all, ahead] = [middle(lane, 'cacheCpu'), middle(lane, 'cacheAheadCpu')]
  return all === undefined || ahead === undefined ? '' : perGiB(all - ahead, lane)
}

const columns: readonly Column[] = [
  { title: 'size', width: 9, show: ({ bytes }) => formatSize(bytes) },
  { title: 'still s', width: 8, show: shown('downtime', seconds) },
  { title: 'least-most', width: 13, show: ({ results }) => spread(results.map(({ downtime }) => downtime)) },
  { title: 'x page-server', width: 14, show: against('page-server', 'downtime') },
  { title: 'x tmpfs', width: 8, show: against('tmpfs', 'downtime') },
  { title: 'frozen s', width: 9, show: shown('frozen', seconds) },
  { title: 'x tmpfs', width: 8, show: against('tmpfs', 'frozen') },
  { title: 'all s', width: 7, show: shown('total', seconds) },
  { title: 'proxy CPU s/GiB', width: 16, show: shown('proxyCpu', perGiB) },
  { title: 'cache CPU s/GiB', width: 16, show: shown('cacheCpu', perGiB) },
  { title: 'less ahead', width: 11, show: lessAhead },
  { title: 'proxy MiB', width: 10, show: shown('proxyPeak', mib) },
  { title: 'cache MiB + image', width: 18, show: shown('cachePeak', (value, { bytes }) => mib(value - bytes)) },
]

const NAME_WIDTH = 15

/** Medians; a line a contender and size. */
export function table(lanes: readonly Lane[]): string {
  const line = (name: string, cell: (column: Column) => string): string => {
    const cells = columns.map((column) => cell(column).padStart(column.width))
    return `${[name.padEnd(NAME_WIDTH), ...cells].join('').trimEnd()}\n`
  }
  const lines = lanes.map((lane) => line(lane.name, ({ show }) => show(lane, lanes)))
  return [line('way', ({ title }) => title), ...lines].join('')
}

/** What is said in a line: medians too. */
export function remarks(lanes: readonly Lane[]): string {
  return lanes.map((lane) => `${early(lane)}${images(lane, lanes)}${start(lane)}`).join('')
}

function early(lane: Lane): string {
  const both = middle(lane, 'bothPeak')
  if (both === undefined) return ''
  return (
    `${lane.name} ${formatSize(lane.bytes)}: cache and process together held ${both.toFixed(2)} x the ` +
    `process at most\n`
  )
}

function images(lane: Lane, lanes: readonly Lane[]): string {
  const count = middle(lane, 'images')
  if (count === undefined || count < MANY) return ''
  const of = (figure: Figure): number => middle(lane, figure) ?? 0
  const each = (value: number): string => `${((value * 1000) / count).toFixed(2)} ms`
  const tmpfs = lanes.find(({ name, bytes }) => name === 'tmpfs' && bytes === lane.bytes)
  const longer = tmpfs && of('downtime') - (middle(tmpfs, 'downtime') ?? 0)
  const still = longer === undefined ? '' : `, ${each(longer)} longer still than tmpfs`
  const cpu = of('proxyCpu') + of('cacheCpu') - of('cacheAheadCpu')
  return `${lane.name} ${formatSize(lane.bytes)}: ${count} images, for each ${each(cpu)} of processor${still}\n`
}

/** Fewer are there for any process, and are nothing beside its memory. */
const MANY = 100

function start(lane: Lane): string {
  const [proxy, cache] = [middle(lane, 'proxyStart'), middle(lane, 'cacheStart')]
  if (proxy === undefined || cache === undefined) return ''
  return (
    `${lane.name} ${formatSize(lane.bytes)}: sockets there ${proxy.toFixed(2)} s (proxy) and ` +
    `${cache.toFixed(2)} s (cache) after the start\n`
  )
}

/** One paragraph: where and with what. */
export function describe(machine: Machine, kind: string, runs: number, children: number): string {
  const { date, processor, cores, memory, kernel, criu, node, load } = machine
  return [
    `${date}: ${processor}, ${cores} cores, ${memory}; Linux ${kernel}, CRIU ${criu}, Node ${node}; ` +
      `load before ${load.toFixed(1)}`,
    `medians of ${runs} interleaved runs, ${kind} memory${children === 0 ? '' : `, ${children} children`}, ` +
      "each verified afterwards; still: the process's own clock, freeze to running",
    '',
  ].join('\n')
}
