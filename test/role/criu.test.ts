import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { checkCriuOptions, leavingOption } from '../../lib/role/criu.ts'
import { throwsFault } from '../expect.ts'

const test = suite('criu options')

test('options that leave the tasks are known in every spelling that getopt takes', () => {
  for (const option of [
    ...['-R', '-s', '-lR', '-Rv', '-Rv4', '-jls', '-dRt'],
    ...['--leave-running', '--leave-stopped', '--leave-r', '--leave-runn', '--leave-s', '--leave-stop'],
  ]) {
    assert.is(leavingOption(['--tcp-established', option, '-v4']), option)
  }
})

test('options that are ours are refused in every beginning that getopt takes for them', () => {
  for (const option of ['--images-dir=/x', '--im=/x', '--pag', '--lazy', '--la', '--aut', '-D/x', '-t1']) {
    throwsFault('USAGE', () => checkCriuOptions([option]), option)
  }
  checkCriuOptions(['--tcp-established', '--shell-job', '--ext-unix-sk', '--', '-v4', '-o', 'x'])
})

test('what only looks like one is none', () => {
  for (const words of [
    // CRIU: -v and -x take the rest of their word, the others that or the next word.
    ...[['-vR'], ['-xs'], ['-oR.log'], ['-o', '-R'], ['-lo', '-s'], ['-j'], ['-v4'], ['Rs'], ['']],
    // Two options begin so, and criu refuses it.
    ...[['--leave'], ['--leave-'], ['--le']],
    ['--leave-running-not'],
  ]) {
    assert.is(leavingOption(words), undefined, words.join(' '))
  }
  assert.is(leavingOption(['-o', '-R', '-R']), '-R')
  assert.is(leavingOption(['-v', '-R']), '-R')
})

test.run()
