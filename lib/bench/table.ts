/** Results as people read them. */
import { formatSize } from '../size.ts'
import { type Lane, median, type Result } from './interleaved-runs.ts'
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

const seconds = (figure: Figure) => (lane: Lane) => middle(lane, figure)?.toFixed(2) ?? ''
const perGiB = (figure: Figure) => (lane: Lane) => {
  const value = middle(lane, figure)
  return value === undefined ? '' : perGiBOf(lane, value)
}
const mib = (figure: Figure, without: 'image' | 'nothing') => (lane: Lane) => {
  const value = middle(lane, figure)
  if (value === undefined) return ''
  return `${Math.round((value - (without === 'image' ? lane.bytes : 0)) / 2 ** 20)}`
}
const against = (name: string, figure: Figure) => (lane: Lane, lanes: readonly Lane[]) => {
  const other = lanes.find((candidate) => candidate.name === name && candidate.bytes === lane.bytes)
  const [ours, theirs] = [middle(lane, figure), other && middle(other, figure)]
  return ours === undefined || theirs === undefined || other === lane ? '' : (ours / theirs).toFixed(2)
}
const spread = ({ results }: Lane): string => {
  const values = results.map(({ downtime }) => downtime)
  return `${Math.min(...values).toFixed(2)}-${Math.max(...values).toFixed(2)}`
}

const perGiBOf = (lane: Lane, value: number): string => (value / (lane.bytes / 2 ** 30)).toFixed(2)
/** What a cache takes without making memory ready. */
const lessAhead = (lane: Lane): string => {
  const [all, ahead] = [middle(lane, 'cacheCpu'), middle(lane, 'cacheAheadCpu')]
  return all === undefined || ahead === undefined ? '' : perGiBOf(lane, all - ahead)
}

const columns: readonly Column[] = [
  { title: 'still s', width: 8, show: seconds('downtime') },
  { title: 'least-most', width: 13, show: spread },
  { title: 'x page-server', width: 14, show: against('page-server', 'downtime') },
  { title: 'x tmpfs', width: 8, show: against('tmpfs', 'downtime') },
  { title: 'frozen s', width: 9, show: seconds('frozen') },
  { title: 'x tmpfs', width: 8, show: against('tmpfs', 'frozen') },
  { title: 'all s', width: 7, show: seconds('total') },
  { title: 'proxy CPU s/GiB', width: 16, show: perGiB('proxyCpu') },
  { title: 'cache CPU s/GiB', width: 16, show: perGiB('cacheCpu') },
  { title: 'less ahead', width: 11, show: lessAhead },
  { title: 'proxy MiB', width: 10, show: mib('proxyPeak', 'nothing') },
  { title: 'cache MiB + image', width: 18, show: mib('cachePeak', 'image') },
]

const NAME_WIDTH = 15
const SIZE_WIDTH = 9

/** Medians; a line a contender and size. */
export function table(lanes: readonly Lane[]): string {
  const head = [
    'way'.padEnd(NAME_WIDTH),
    'size'.padStart(SIZE_WIDTH),
    ...columns.map(({ title, width }) => title.padStart(width)),
  ]
  const lines = lanes.map((lane) => [
    lane.name.padEnd(NAME_WIDTH),
    formatSize(lane.bytes).padStart(SIZE_WIDTH),
    ...columns.map(({ width, show }) => show(lane, lanes).padStart(width)),
  ])
  return [head, ...lines].map((cells) => `${cells.join('').trimEnd()}\n`).join('')
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
  const [proxy, cache, ahead] = (['proxyCpu', 'cacheCpu', 'cacheAheadCpu'] as const).map(
    (figure) => middle(lane, figure) ?? 0,
  )
  if (count === undefined || count < MANY) return ''
  const each = (value = 0): string => `${((value * 1000) / count).toFixed(2)} ms`
  const tmpfs = lanes.find(({ name, bytes }) => name === 'tmpfs' && bytes === lane.bytes)
  const longer = tmpfs && (middle(lane, 'downtime') ?? 0) - (middle(tmpfs, 'downtime') ?? 0)
  const still = longer === undefined ? '' : `, ${each(longer)} longer still than tmpfs`
  const cpu = (proxy ?? 0) + (cache ?? 0) - (ahead ?? 0)
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
