"""The 561 features of UCI HAR: which signal each of them is of.

Names of signals are those of the data set's `features.txt`, without the
statistic behind them: in time (`t`) or in frequencies (`f`), or an angle
between means. Those of `Gyro` are of the gyroscope, an angle between `Gyro` and
gravity is of both sensors, and all others are of the accelerometer.
"""

# A signal of three axes has 40 features in time and 79 in frequencies, a
# magnitude 13.
_SIGNALS = (
  *(('tBodyAcc', 40), ('tGravityAcc', 40), ('tBodyAccJerk', 40)),
  *(('tBodyGyro', 40), ('tBodyGyroJerk', 40), ('tBodyAccMag', 13)),
  *(('tGravityAccMag', 13), ('tBodyAccJerkMag', 13), ('tBodyGyroMag', 13)),
  *(('tBodyGyroJerkMag', 13), ('fBodyAcc', 79), ('fBodyAccJerk', 79)),
  *(('fBodyGyro', 79), ('fBodyAccMag', 13), ('fBodyBodyAccJerkMag', 13)),
  *(('fBodyBodyGyroMag', 13), ('fBodyBodyGyroJerkMag', 13)),
  *(('angle(tBodyAccMean,gravity)', 1), ('angle(tBodyAccJerkMean)', 1)),
  *(('angle(tBodyGyroMean,gravity)', 1), ('angle(tBodyGyroJerkMean)', 1)),
  *((f'angle({axis},gravityMean)', 1) for axis in 'XYZ'),
)
# In the order of the features.
FEATURE_NAMES = tuple(name for name, count in _SIGNALS for _ in range(count))
