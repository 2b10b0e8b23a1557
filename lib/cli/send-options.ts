/** How images are put on the link: for the commands that send them. */
import { Fault } from '../fault.ts'
import { parseSize } from '../size.ts'
import type { ValuesOf } from './common-options.ts'
import { atMostOne, oneOf } from './parse.ts'

export const sendOptions = {
  compress: { type: 'string', default: 'none' },
  'rate-limit': { type: 'string' },
  'no-checksum': { type: 'boolean', default: false },
} as const

export const sendHelp = `      --compress HOW   ${sendOptions.compress.default} (the default), zstd, lz4 or auto: what
                       is fastest, none if the link is fast or if the memory does not shrink
      --rate-limit SZ  send at most SZ bytes per second, as in 50M
      --no-checksum    compare only sizes: damaged data is not noticed`

const ways = ['none', 'auto', 'zstd', 'lz4'] as const
const LEAST_RATE = 64 * 2 ** 10

/** How to send; `rate` in bytes a second. Throws `USAGE`. */
export function readSendOptions(values: ValuesOf<typeof sendOptions> & { dedup?: boolean }) {
  const { dedup = false, 'no-checksum': unchecked } = values
  atMostOne({ '--dedup': dedup, '--no-checksum': unchecked })
  const way = oneOf('--compress', values.compress, ways)
  const limit = values['rate-limit']
  const rate = limit === undefined ? undefined : parseSize(limit)
  if (rate !== undefined && rate < LEAST_RATE) {
    throw new Fault('USAGE', `--rate-limit ${limit} is less than 64k`, { hint: 'bytes a second, as in 50M' })
  }
  return { compress: way === 'none' ? undefined : way, rate, unchecked, dedup }
}
