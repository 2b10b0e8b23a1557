# pattern.pl MIB OUT: fills MIB MiB with a pattern, then counts; every count it checks one more stretch of its memory.
# OUT gets a line per count: `COUNT ok`, or `COUNT WRONG at MIB`. On SIGUSR1 it checks everything: `all MIB MiB ok`.
use strict; use warnings;
my ($mib, $out) = @ARGV;
open(my $log, '>>', $out) or die "$out: $!";
select((select($log), $| = 1)[0]);
my $base = join '', map { pack('Q<', ($_ * 0x9e3779b97f4a7c15) & 0xffffffffffffffff) } 0 .. 131071;
my @block = map { $base ^ (pack('Q<', $_ * 7919 + 1) x 131072) } 0 .. $mib - 1;
sub good { my ($i) = @_; return $block[$i] eq ($base ^ (pack('Q<', $i * 7919 + 1) x 131072)) }
my $all = 0;
$SIG{USR1} = sub { $all = 1 };
print $log "ready $$\n";
for (my $count = 1; ; $count++) {
  my $i = $count % $mib;
  print $log good($i) ? "$count ok\n" : "$count WRONG at $i\n";
  if ($all) {
    $all = 0;
    my @bad = grep { !good($_) } 0 .. $mib - 1;
    print $log @bad ? "all WRONG at @bad\n" : "all $mib MiB ok\n";
  }
  select(undef, undef, undef, 0.05);
}
