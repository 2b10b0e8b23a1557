import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { readSendOptions } from '../../lib/cli/send-options.ts'
import { throwsFault } from '../expect.ts'

const test = suite('cli/send-options')

const of = (values: Partial<Parameters<typeof readSendOptions>[0]>) =>
  readSendOptions({ compress: 'none', 'no-checksum': false, dedup: false, ...values })

test('how to compress is one of four words', () => {
  assert.equal(of({}), { compress: undefined, rate: undefined, unchecked: false, dedup: false })
  for (const compress of ['auto', 'zstd', 'lz4']) assert.is(of({ compress }).compress, compress)
  for (const compress of ['', 'ZSTD', 'gzip', 'zstd ']) {
    assert.match(throwsFault('USAGE', () => of({ compress })).message, `not ${compress}`)
  }
})

test('a rate is a size of at least 64k', () => {
  const rate = (text: string): number | undefined => of({ 'rate-limit': text }).rate
  assert.is(rate('50M'), 50 * 2 ** 20)
  assert.is(rate('65536'), 65_536)
  for (const text of ['0', '65535', '-1', 'fast', '']) throwsFault('USAGE', () => rate(text), text)
})

test('checksums are left out only by a word', () => {
  assert.is(of({ 'no-checksum': true }).unchecked, true)
})

test('--dedup is for a cache, and for contents that are checked', () => {
  assert.is(of({ dedup: true }).dedup, true)
  throwsFault('USAGE', () => of({ dedup: true, 'no-checksum': true }))
})

test.run()
