import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import fc from 'fast-check'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { decodeInventory } from '../../lib/format/inventory.ts'
import { onlyFaults, throwsFault } from '../expect.ts'
import { chains } from '../support/chains.ts'
import { fixtures } from '../support/run.ts'

const test = suite('format/inventory')

function inventory(body: string): Buffer {
  const bytes = Buffer.from(body.replaceAll(' ', ''), 'hex')
  const head = Buffer.from('1631315800000000', 'hex')
  head.writeUInt32LE(bytes.length, 4)
  return Buffer.concat([head, bytes])
}

test('the inventories of CRIU: of dumps and of pre-dumps', () => {
  assert.equal(decodeInventory(readFileSync(join(fixtures, 'images', 'inventory.img'))), { preDump: false })
  for (const { criu, directories } of chains()) {
    const found = directories.map(
      (directory) => decodeInventory(readFileSync(join(directory, 'inventory.img'))).preDump,
    )
    assert.equal(found, [true, true, true, false], criu)
  }
})

test('what they say, by field', () => {
  assert.equal(decodeInventory(inventory('08 02')), { preDump: false })
  assert.equal(decodeInventory(inventory('08 02 78 00')), { preDump: false }, 'of CRIU 4.3, not compressed')
  assert.equal(decodeInventory(inventory('08 00 48 01')), { preDump: true }, 'of a pre-dump before CRIU 4.3')
  assert.equal(decodeInventory(inventory('08 02 48 02 62 00 78 00')), { preDump: true })
  assert.equal(decodeInventory(inventory('08 02 1a 02 4801')), { preDump: false }, 'a field within another')
})

const refusals: [what: string, bytes: Buffer, message: RegExp][] = [
  ['version 3', inventory('08 03'), /images of version 3, known is 2/],
  ['version 3 of a pre-dump', inventory('08 03 48 01'), /images of version 3/],
  ['version 1, without a common magic', inventory('08 01'), /images of version 1/],
  ['version 0 of a dump', inventory('08 00'), /images of version 0/],
  ['no version', inventory(''), /images of version 0/],
  ['compressed pages', inventory('08 02 78 01'), /compressed images are not understood/],
  ['compressed regions', inventory('08 02 78 02'), /compressed/],
  ['another image', readFileSync(join(fixtures, 'images', 'pstree.img')), /not an inventory/],
  ['nothing', Buffer.alloc(0), /not an inventory/],
  ['more than its size', Buffer.concat([inventory('08 02'), Buffer.of(0x10, 1)]), /damaged inventory/],
  ['less than its size', inventory('08 02 10 01').subarray(0, 10), /damaged inventory/],
  ['a number without an end', inventory('08'), /damaged inventory/],
  ['a message that is too long', inventory('08 02 1a 09 00'), /damaged inventory/],
]
for (const [what, bytes, message] of refusals) {
  test(`refused by name: ${what}`, () => {
    const fault = throwsFault('FORMAT', () => decodeInventory(bytes))
    assert.match(fault.message, message)
  })
}

test('random bytes: an inventory or a Fault', () => {
  let read = 0
  const random = fc.uint8Array({ maxLength: 40 }).map((bytes) => inventory(`0802${Buffer.from(bytes).toString('hex')}`))
  fc.assert(
    fc.property(random, (bytes) => {
      if (onlyFaults(() => decodeInventory(bytes)) !== undefined) read++
    }),
    { numRuns: 3000 },
  )
  assert.ok(read > 50, `only ${read} were read`)
})

test.run()
