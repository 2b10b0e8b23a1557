/** Options of the cache about what it holds, their usage text, and the list as text. */
import { Fault } from '../fault.ts'
import { formatSize } from '../size.ts'
import { atMostOne } from './parse.ts'

export const holdingsOptions = {
  ls: { type: 'boolean', default: false },
  json: { type: 'boolean', default: false },
  rm: { type: 'string' },
  pin: { type: 'string' },
  unpin: { type: 'string' },
  restore: { type: 'boolean', default: false },
  'release-early': { type: 'boolean', default: false },
  keep: { type: 'boolean', default: false },
  dedup: { type: 'boolean', default: false },
} as const

export const holdingsHelp = `      --restore        restore every process that is handed over, as soon as it is here
      --release-early  give its memory back meanwhile: less memory, but only one try
      --keep           a snapshot whose process runs stays, for more restores of it (--rm
                       drops it). Copies of one process share its identity: pids, host
                       name, keys, connections. Give each a pid and a network namespace
      --dedup          let senders leave out pages that are here, and keep those once. A
                       sender learns which pages are here: for snapshots of one owner
      --ls             list what the cache in DIR holds: id, state, memory, age; --json: as
                       one JSON object
      --rm ID          have it drop a snapshot or an unfinished chain; not one whose process
                       may be lost with it
      --pin ID         have it keep this one: as --keep does, and when memory runs out
      --unpin ID       no longer; it is not dropped by that`

interface StockValues {
  ls: boolean
  json: boolean
  rm?: string | undefined
  pin?: string | undefined
  unpin?: string | undefined
  keep: boolean
  dedup: boolean
  'let-run'?: string | undefined
  drop?: string | undefined
  'release-early': boolean
}

/** What becomes of images that are restored. Throws `USAGE` for options that do not go together. */
export function checkHoldingsOptions({
  ls,
  json,
  rm,
  pin,
  unpin,
  keep,
  dedup,
  drop,
  'let-run': letRun,
  'release-early': early,
}: StockValues) {
  atMostOne({ '--ls': ls, '--rm': rm, '--pin': pin, '--unpin': unpin, '--let-run': letRun, '--drop': drop })
  atMostOne({ '--keep': keep, '--release-early': early })
  if (json && !ls) throw new Fault('USAGE', '--json is for --ls', { hint: 'add --ls' })
  return { keep, dedup, releaseEarly: early }
}

interface Listed {
  id: string
  state:
    | 'arriving'
    | 'sealed'
    | 'undecided'
    | 'restoring'
    | 'held'
    | 'owning'
    | 'retained'
    | 'leaving'
    | 'chain'
    | 'taken'
  pinned: boolean
  count: number
  bytes: number
  shared: number
  seconds: number
}

/** `total`: what is there, for a list that is cut. */
interface Stock {
  total: number
  holdings: readonly Listed[]
}

const words: Record<Exclude<Listed['state'], 'chain'>, string> = {
  arriving: 'arriving',
  sealed: 'sealed',
  undecided: 'waits for its verdict',
  restoring: 'is being restored',
  held: 'held until its verdict',
  owning: 'waits for a restore, its source is gone',
  retained: 'retained, its process runs',
  leaving: 'removed, and still read or shared',
  taken: 'taken by a criu that nobody held',
}

/** Of the object that `--json` prints. */
const SCHEMA = 2

/** Prints what a cache holds: a line each, or one JSON object. */
export function printHoldings(stock: Stock, json: boolean): void {
  process.stdout.write(json ? `${asJson(stock)}\n` : asText(stock))
}

/** A line each. */
export function asText({ total, holdings }: Stock): string {
  const rows = holdings.map(({ id, state, pinned, count, bytes, shared, seconds }) => [
    id,
    (state === 'chain' ? `chain of ${many(count, 'round')}` : `${words[state]}, ${many(count, 'image')}`) +
      (pinned ? ', pinned' : ''),
    formatSize(bytes) + (shared > 0 ? ` and ${formatSize(shared)} shared` : ''),
    `${seconds} s`,
  ])
  const width = (column: number): number => Math.max(...rows.map((row) => row[column]?.length ?? 0))
  const lines = rows.map((row) =>
    row.map((cell, column) => (column < 3 ? cell.padEnd(width(column)) : cell)).join('  '),
  )
  const more = total - holdings.length
  if (more > 0) lines.push(`and ${more} more`)
  return lines.map((line) => `${line}\n`).join('')
}

/** One object, without the end of a line. */
export function asJson({ total, holdings }: Stock): string {
  const snapshots = holdings.map(({ id, state, pinned, count, bytes, shared, seconds }) => ({
    ...{ id, state, pinned, [state === 'chain' ? 'rounds' : 'images']: count, bytes, shared, seconds },
  }))
  return JSON.stringify({ version: SCHEMA, total, snapshots })
}

function many(count: number, what: string): string {
  return `${count} ${what}${count === 1 ? '' : 's'}`
}
